"""The page of a bench: `report.html`, made from bench.json alone."""

from edc.benchmark.page.write import page_from_bench, write_page

__all__ = ["page_from_bench", "write_page"]
