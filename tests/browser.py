"""Headless Chromium for tests: its DevTools protocol over a pipe, which needs no driver and no package."""

import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["Browser"]

FEW_SECONDS = 30.0


class Browser:
    """One page of headless Chromium. `events` collects what it reports: requests, console messages, exceptions."""

    def __init__(self, chromium: str, profile: Path) -> None:
        to_browser, self._to_browser = os.pipe()
        from_browser, at_browser = os.pipe()
        self._from_browser = from_browser
        flags = [
            "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-extensions", "--remote-debugging-pipe",
            "--enable-unsafe-swiftshader", "--disable-features=HttpsUpgrades",
            "--host-resolver-rules=MAP demo.test 127.0.0.1", f"--user-data-dir={profile}",
        ]  # fmt: skip
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        # Chromium wants the pipes as descriptors 3 and 4; a launcher puts them there without forking this process.
        launcher = (
            "import fcntl, os, sys\n"
            "ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]\n"
            "os.dup2(ends[0], 3), os.dup2(ends[1], 4)\n"
            "os.execv(sys.argv[3], sys.argv[3:])"
        )
        command = [sys.executable, "-ISc", launcher, str(to_browser), str(at_browser), chromium, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, at_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(at_browser)
        self._unread = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        unsent = json.dumps(message).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._to_browser, unsent) :]
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from_browser], [], [], 2 * FEW_SECONDS)
            received = os.read(self._from_browser, 1 << 20) if ready else b""
            assert received, "Chromium does not answer"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]["exception"].get("description")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + FEW_SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}; the page: {self.text('main')}"
            time.sleep(0.02)

    def open(self, url: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def open_without_script(self, url: str) -> None:
        """Open a page that cannot be asked whether it is complete, because scripts are disabled."""
        self.events.clear()
        loader = self.call("Page.navigate", url=url)["loaderId"]
        loaded = {"name": "load", "loaderId": loader}
        while not any(loaded.items() <= event["params"].items() for event in self.events):
            self.events.append(self._read())

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def choose(self, path: Path) -> None:
        answer = self.call("Runtime.evaluate", expression="document.getElementById('file')")
        self.call("DOM.setFileInputFiles", files=[str(path)], objectId=answer["result"]["objectId"])

    def drop(self, path: Path) -> None:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)

    def problems(self) -> list[str]:
        """Return what the console holds: errors, warnings, exceptions that nobody caught."""
        self.evaluate("new Promise((resolve) => setTimeout(resolve, 50))")
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def urls(self) -> set[str]:
        requests = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return {request["request"]["url"] for request in requests}

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(FEW_SECONDS)
        os.close(self._to_browser)
        os.close(self._from_browser)
