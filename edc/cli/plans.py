"""What is shown before a run: its cost, its teachers, and where the time of a step goes. Trains nothing."""

from typing import Any

from edc.cli.options import print_json, table_console

__all__ = ["show_costs", "show_profile"]


def show_costs(recipe: Any, run: Any, accelerator: Any, *, as_json: bool) -> None:
    """Prints the resolved recipe, what its run will cost, and what its teachers are like; changes nothing."""
    import dataclasses

    import yaml

    from edc.cli.tables.advice import print_advice
    from edc.cli.tables.run import print_costs
    from edc.data import load_training_data
    from edc.data.overlap import warn_of_overlap
    from edc.runs.cost import estimate_costs
    from edc.runs.distill import require_trainable
    from edc.runs.start import require_fetchable
    from edc.runs.student import as_begun
    from edc.runs.why.advice import advice_of, rehearse_roll_call
    from edc.system.files import require_free_disk
    from edc.train.distributed import by_main, one_of_a_machine_first, raised_together

    by_main(lambda: run.require_claimable(recipe), accelerator)  # the errors of the run itself, in its order
    data_section = recipe.data.without_download()
    data = one_of_a_machine_first(lambda: load_training_data(data_section), accelerator)
    with raised_together(accelerator):
        require_fetchable(recipe, data, teachers_path=run.teachers_path)
        require_free_disk(run.path, require_trainable(recipe, data, accelerator=accelerator), "this run")
    by_main(lambda: warn_of_overlap(data), accelerator)
    own, roll = rehearse_roll_call(recipe, data, run=run, accelerator=accelerator)
    costs = estimate_costs(as_begun(recipe, run=run, accelerator=accelerator), data, accelerator=accelerator)
    advice = advice_of(recipe, data, run=run, accelerator=accelerator, own=own)
    if not accelerator.is_main_process:
        return
    document = recipe.model_dump(mode="json", exclude_none=True)
    if as_json:
        rows = [{**dataclasses.asdict(cost), "units": cost.units, "seconds": cost.seconds} for cost in costs]
        found = {"cannot_say": advice} if isinstance(advice, str) else dataclasses.asdict(advice)
        called = roll.document() if roll else None
        shown = {"recipe": document, "digest": recipe.digest(), "costs": rows, "roll_call": called, "teachers": found}
        print_json(shown)
        return
    print(yaml.safe_dump(document, sort_keys=False))
    print_costs(costs, console=table_console(as_json))
    print_advice(advice, console=table_console(as_json))


def show_profile(recipe: Any, run: Any, accelerator: Any, *, as_json: bool) -> None:
    """Runs a few steps of the deployed student and prints where their time goes; trains nothing."""
    import dataclasses

    from edc.cli.tables.profile import print_profile
    from edc.runs.profile import profile_step
    from edc.runs.student import as_begun

    # Beside the run, never in it: `edc distill` does not take a folder that holds other files.
    folder = run.path.with_name(f"{run.path.name}-profile")
    begun = as_begun(recipe, run=run, accelerator=accelerator)
    found = profile_step(begun, folder=folder, teachers_path=run.teachers_path, accelerator=accelerator)
    if accelerator.is_main_process:
        if as_json:
            print_json(dataclasses.asdict(found))
        print_profile(found, console=table_console(as_json))
