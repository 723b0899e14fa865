"""A headless Chromium, spoken to in the DevTools protocol over a pipe: pages are opened, clicked and photographed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # No host name can be resolved: nothing is fetched from anywhere.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NO_GL = ["--disable-gpu", "--disable-3d-apis"]


class Browser:
    """One page of a Chromium of its own.

    Args:
        profile: an empty folder for its files.
        gl: whether it can draw in 3D (in software).
        width: of the window, CSS pixels.
        height: of the window, CSS pixels.
        dark: whether it prefers dark pages.

    Attributes:
        requests: addresses that the page asked for, but for the page itself and data inside of it.
        complaints: errors and warnings of the console and uncaught exceptions.
    """

    def __init__(self, profile: Path, gl: bool = True, width: int = 1280, height: int = 800, dark: bool = False):
        (to_read, self._out), (self._in, to_write) = os.pipe(), os.pipe()
        # The protocol wants its pipes at the descriptors 3 and 4; copies above do not get into each other's way.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_read, to_write)]
        command = [PROGRAM, *FLAGS, *(SOFTWARE_GL if gl else NO_GL), "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            preexec_fn=lambda: [os.dup2(end, number) for number, end in zip((3, 4), ends, strict=True)],
            close_fds=False,  # what Python opens is closed anyhow
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_read, to_write, *ends):
            os.close(end)
        self._buffer, self._count, self._session = b"", 0, None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._loaded = False
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self._phone = width < 600
        self.resize(width, height)
        self(
            "Emulation.setEmulatedMedia",
            features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")],
        )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._session = None
        try:
            self("Browser.close")
            self._process.wait(20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def __call__(self, method: str, **parameters) -> dict:
        """Call a method of the protocol, and return its result."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, file: Path) -> None:
        """Open a local page and wait until it is loaded."""
        self._loaded = False
        self.requests.clear()
        self("Page.navigate", url=file.resolve().as_uri())
        self._until(lambda: self._loaded)
        self.requests.remove(file.resolve().as_uri())

    def resize(self, width: int, height: int) -> None:
        """Give the window another size, or turn a phone."""
        more = {"deviceScaleFactor": 1 + self._phone, "mobile": self._phone}
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, **more)

    def run(self, script: str):
        """The value of a JavaScript expression in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more) -> None:
        """A mouse event at a place of the window: mousePressed, mouseReleased, mouseMoved or mouseWheel."""
        self("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def key(self, name: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self(
                "Input.dispatchKeyEvent", type=kind, key=name, text=name if len(name) == 1 and kind == "keyDown" else ""
            )

    def place(self, selector: str) -> dict:
        """The rectangle of an element in the window, after it was scrolled to: x, y, width, height."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const r = e.getBoundingClientRect();"
            "return {x: r.x, y: r.y, width: r.width, height: r.height}; })()"
        )

    def picture(self, selector: str | None = None) -> bytes:
        """A PNG of the window, or of an element."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        clip = {}
        if selector:
            place = self.place(selector)
            self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
            scroll = self.run("({x: scrollX, y: scrollY})")
            place["x"] += scroll["x"]
            place["y"] += scroll["y"]
            clip = {"clip": {**place, "scale": 1}}
        return base64.b64decode(self("Page.captureScreenshot", format="png", **clip)["data"])

    def _receive(self, patience: float = 300) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], patience)[0]:
                raise TimeoutError(f"Chromium said nothing for {patience:.0f} s")
            if not (part := os.read(self._in, 1 << 20)):
                raise RuntimeError("Chromium ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(message)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, details: dict) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            url = details["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(details["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a)) for a in details["args"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(details["entry"]["text"])

    def _until(self, holds: Callable[[], bool], patience: float = 300) -> None:
        end = time.monotonic() + patience
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError("the page did not load")
            self._receive()
