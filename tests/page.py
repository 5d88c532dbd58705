"""The server's page in a browser: ``python tests/page.py [--shots FOLDER]``. Needs playwright and a chromium.

It speaks, streams, stops, is told what is wrong, makes and deletes a voice, by mouse and by keyboard, at the width of a desk and
of a phone, and keeps pictures of it.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import soundfile
from playwright.sync_api import Page, expect, sync_playwright
from serving import Slow, serving
from test_server_voices import clip

SIZES = {"desk": (1280, 900), "phone": (390, 844)}


def speaks(page: Page, shots: Path, size: str, engine: Slow) -> None:
    """Sound, pictures and times while it is made; stopping."""
    expect(page.locator("#voice option")).to_have_text(["alto", "tenor", "random"])
    page.get_by_label("Text").fill("Hello there. How are you today? " * 4)
    page.get_by_text("All settings").click()
    page.get_by_label("seed").fill("7")
    page.get_by_label("max mel tokens").fill("60")
    page.screenshot(path=shots / f"{size}-settings.png", full_page=True)
    page.get_by_text("All settings").click()
    engine.pause = 0.005
    page.get_by_role("button", name="Speak", exact=True).click()
    expect(page.get_by_role("status").first).to_have_text("Speaking.")
    expect(page.locator("#total")).to_have_text("–")  # sound is there before all of it
    page.wait_for_timeout(400)
    page.screenshot(path=shots / f"{size}-speaking.png", full_page=True)
    expect(page.get_by_role("status").first).to_have_text("All is made.", timeout=60_000)
    assert page.locator("#seed").inner_text() == "7"
    drawn = "id => { const c = document.getElementById(id), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
    drawn += (
        " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / (c.width * c.height); }"
    )
    page.wait_for_timeout(200)
    assert 0.01 < page.evaluate(drawn, "wave") < 0.99 and page.evaluate(drawn, "mel") > 0.99
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as wav").click()
    wave, rate = soundfile.read(io.BytesIO(Path(saved.value.path()).read_bytes()))
    assert rate == 24000 and abs(len(wave) / rate - float(page.locator("#seconds").inner_text()[:-2])) < 0.01
    page.get_by_role("button", name="Play again").click()
    page.screenshot(path=shots / f"{size}-done.png", full_page=True)
    page.get_by_role("button", name="Stop").click()  # all is made, but not yet heard
    expect(page.get_by_role("status").first).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    engine.pause = 0.05
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status").first).to_have_text("Stopped.")
    engine.pause = 0


def works_by_keyboard(page: Page, engine: Slow) -> None:
    engine.pause = 0.01
    page.get_by_role("button", name="Speak", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()  # the button that was pressed is off
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_focused()
    engine.pause = 0
    page.get_by_label("Text").focus()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status").first).to_have_text("All is made.", timeout=60_000)
    page.get_by_label("Text").focus()
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert seen[:3] == ["voice", "preset", "go"] and "All settings" in seen, seen


def tells_what_is_wrong(page: Page, shots: Path, size: str) -> None:
    page.get_by_text("All settings").click()
    page.get_by_label("temperature", exact=True).fill("0")
    page.get_by_role("button", name="Speak", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("temperature is 0")
    page.get_by_label("temperature", exact=True).fill("hot")
    page.get_by_role("button", name="Speak", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("temperature must be a number")
    page.get_by_text("All settings").click()
    page.screenshot(path=shots / f"{size}-wrong.png", full_page=True)
    page.reload()


def makes_a_voice(page: Page, shots: Path, size: str) -> None:
    page.get_by_text("Voices from clips").click()
    page.get_by_label("Name of the voice").fill("emma")
    page.get_by_label("Clips").set_input_files(
        {"name": "bad.wav", "mimeType": "audio/wav", "buffer": b"no audio"}
    )
    page.get_by_label("The speaker agrees").check()
    page.get_by_role("button", name="Make the voice").click()
    expect(page.locator("#voice-error")).to_contain_text("'bad.wav' cannot be read as audio")
    page.screenshot(path=shots / f"{size}-bad-clip.png", full_page=True)
    page.get_by_label("Clips").set_input_files(
        {"name": "good.wav", "mimeType": "audio/wav", "buffer": clip()}
    )
    page.get_by_role("button", name="Make the voice").click()
    expect(page.locator("#voice-status")).to_contain_text("emma is there")
    assert page.locator("#voice").input_value() == "emma"
    page.screenshot(path=shots / f"{size}-voice.png", full_page=True)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete the voice emma").click()
    expect(page.locator("#voice-status")).to_contain_text("emma is deleted")
    expect(page.locator("#voices > summary")).to_be_focused()


def fits(page: Page) -> None:
    """Nothing is wider than the window, every field has a name, and what is to be touched is large enough."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    nameless = (
        "[...document.querySelectorAll('input, select, textarea')].filter(x => !x.labels.length).length"
    )
    assert page.evaluate(nameless) == 0
    heights = page.evaluate(
        "[...document.querySelectorAll('button, select, textarea, summary, input:not([type=checkbox])')].map(x => x.getBoundingClientRect().height).filter(Boolean)"
    )
    assert min(heights) >= 44


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=Path, help="where pictures go")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    options = parser.parse_args()
    shots = options.shots or Path(tempfile.mkdtemp())
    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.environ["TORTOISE_RT_VOICES"] = folder
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            engine, began = Slow(), time.monotonic()
            scheme = "dark" if size == "phone" else "light"
            with serving(engine) as server:
                touch = size == "phone"
                page = browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,
                    is_mobile=touch,
                    has_touch=touch,
                )
                faults: list[str] = []
                page.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
                page.on("request", lambda r, faults=faults, url=server.url: r.url.startswith((url, "data:", "blob:")) or faults.append(r.url))  # fmt: skip
                page.goto(server.url)
                speaks(page, shots, size, engine)
                server.settled()
                works_by_keyboard(page, engine)
                tells_what_is_wrong(page, shots, size)
                makes_a_voice(page, shots, size)
                fits(page)
                assert not faults, faults
            print(f"{size}: as it should be, {time.monotonic() - began:.1f} s")
        with serving(keys={"anna": "a" * 16}) as server:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            page.goto(server.url)
            expect(page.get_by_role("alert").first).to_contain_text("needs a key")
            page.screenshot(path=shots / "key.png")
            page.get_by_label("Key of this server").fill("b" * 16)
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert").first).to_contain_text("does not know this key")
            page.get_by_label("Key of this server").fill("a" * 16)
            page.get_by_role("button", name="Use it").click()
            expect(page.locator("#voice option").first).to_have_text("alto")
            page.get_by_label("Text").fill("Hello there.")
            page.get_by_role("button", name="Speak", exact=True).click()
            expect(page.get_by_role("status").first).to_have_text("All is made.", timeout=60_000)
        print(f"key: as it should be; pictures are in {shots}")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
