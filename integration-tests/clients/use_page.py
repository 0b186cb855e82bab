"""The page at `/` in a headless Chromium: python use_page.py URL BROWSER [FOLDER for screenshots]."""

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

URL, BROWSER = sys.argv[1:3]
SHOTS = Path(sys.argv[3]) if len(sys.argv) > 3 else None
QUESTION = "What is a violin?"
HOSTILE = """<img src=x onerror="window.hacked=1"> [click](javascript:window.hacked=1)
- one
  - two
1. three

| a | b |
|---|---|
| `c` | **d** |

```html
<script>window.hacked=1</script>
```"""
problems: list[str] = []


def open_page(browser: Browser, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(URL)
    page.locator("#notice").wait_for(state="hidden")
    page.get_by_text("tgi-demo", exact=True).wait_for()
    return page


def ask(page: Page, text: str) -> str:
    answers = page.locator("article.assistant footer .note")
    before = answers.count()
    page.fill("#message", text)
    page.press("#message", "Enter")
    answers.nth(before).wait_for()
    return answer(page)


def answer(page: Page) -> str:
    return page.locator("article.assistant").last.locator("> p").first.inner_text()


def look(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=SHOTS / f"{name}.png")


def chat(browser: Browser) -> Any:
    page = open_page(browser, viewport={"width": 1200, "height": 560})
    welcome = page.locator("h1").inner_text()
    page.click("#settings-toggle")
    page.fill("[name=temperature]", "0")
    page.check("[name=logprobs]")
    found = {"welcome": welcome, "answer": ask(page, QUESTION)}
    look(page, "chat")
    page.reload()
    found["kept"] = answer(page)
    page.get_by_role("button", name="Retry").click()
    page.locator("article.assistant footer .note").wait_for()
    found["again"] = answer(page)
    page.get_by_role("button", name="Tokens").click()
    tokens = page.locator(".tokens span")
    found["tokens"] = tokens.all_inner_texts()
    tokens.first.hover()
    found["hint"] = tokens.first.get_attribute("data-hint")
    look(page, "tokens")
    page.get_by_role("button", name="New chat").click()
    found["new"] = page.locator("article").count()
    page.get_by_role("button", name=f"Delete {QUESTION}").click()
    page.reload()
    found["deleted"] = page.locator("#chat-list li").count()
    return found


def lost(browser: Browser) -> Any:
    page = open_page(browser)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#message", QUESTION)
    page.press("#message", "Enter")
    said = page.get_by_role("alert").inner_text()
    problems.clear()  # the browser logs the request that was refused
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Retry").click()
    page.locator("article.assistant footer .note").wait_for()
    return {"said": said, "errors": page.get_by_role("alert").count()}


def keyboard(browser: Browser) -> Any:
    page = open_page(browser)
    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("again")
    typed = page.input_value("#message")
    page.keyboard.press("Enter")
    page.locator("article.assistant footer .note").wait_for()
    return {"skip": skip, "typed": typed, "sent": page.locator("article.user .typed").inner_text()}


def engine(browser: Browser) -> Any:
    page = open_page(browser, color_scheme="dark")
    page.click("#to-engine")
    page.locator("#charts figure").first.wait_for()
    if SHOTS:
        page.wait_for_timeout(40_000)  # until there is something to see
    look(page, "engine")
    return {
        "figures": page.locator(".figure span").all_inner_texts(),
        "blocks": page.locator("#blocks").get_attribute("aria-label"),
        "charts": page.locator("#charts figure").count(),
    }


def themes(browser: Browser) -> Any:
    page = open_page(browser, color_scheme="dark")
    color = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(color)
    ask(page, QUESTION)
    look(page, "dark")
    page.click("#theme")
    light = page.evaluate(color)
    page.reload()
    return {"dark": dark, "light": light, "kept": page.evaluate(color)}


def phone(browser: Browser) -> Any:
    page = open_page(browser, viewport={"width": 390, "height": 780}, has_touch=True)
    ask(page, QUESTION)
    look(page, "phone")
    ask(page, "word " * 60)
    page.click("#menu")
    return {
        "chats": page.locator("#chats").is_visible(),
        "overflow": page.evaluate("document.documentElement.scrollWidth - innerWidth"),
    }


def markdown(browser: Browser) -> Any:
    page = open_page(browser)
    return page.evaluate(
        """async (text) => {
          const { render } = await import("./page/markdown.js");
          const main = document.querySelector("#messages");
          main.replaceChildren(...render(text));
          await new Promise((done) => setTimeout(done, 100));
          const list = (where) => [...main.querySelectorAll(where)].map((one) => one.textContent);
          return {
            hacked: window.hacked ?? null, links: list("a"), images: list("img"), scripts: list("script"),
            nested: list("ul ul li"), ordered: list("ol li"), cells: list("td"), code: list("pre code"),
          };
        }""",
        HOSTILE,
    )


with sync_playwright() as playwright:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
    parts = (chat, lost, keyboard, engine, themes, phone, markdown)
    found = {part.__name__: part(browser) for part in parts}
    browser.close()
print(json.dumps({**found, "problems": problems}))
