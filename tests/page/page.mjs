// Cases of the page in a real Chromium. Arguments: the server's URL, its key or "", a folder for screenshots, the path
// of playwright-core. Prints what became of each case as a line of JSON.
import { createRequire } from "node:module";

const [url, apiKey, folder, playwright] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });

/** A fresh browser profile with the page open; what it asked for and complained of is noted. */
async function fresh({ width = 1280, height = 800, scheme = "light", withKey = true, path = "/" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
  const page = await context.newPage();
  page.setDefaultTimeout(180000);
  page.asked = [];
  page.complaints = [];
  page.on("request", (request) => page.asked.push(request.url()));
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/status of 4/.test(message.text())) page.complaints.push(message.text());
  });
  if (withKey && apiKey) await page.addInitScript((key) => sessionStorage.setItem("pagoda.key", key), apiKey);
  await page.goto(url + path);
  return page;
}

function check(condition, what) {
  if (!condition) throw new Error(what);
}

async function ask(page, text) {
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
}

async function setSettings(page, fields) {
  await page.getByRole("button", { name: "Settings" }).click();
  for (const [label, value] of Object.entries(fields)) await page.getByLabel(label).fill(value);
  await page.getByRole("button", { name: "Done" }).click();
}

const answered = (page, count = 1) => page.waitForFunction(
  (wanted) => document.querySelectorAll("article.assistant footer").length === wanted, count);

const cases = {
  async streams_an_answer() {
    const page = await fresh();
    await page.waitForFunction(() => document.getElementById("model").textContent === "fake");
    await setSettings(page, { "Max tokens": "12" });
    await ask(page, "hello there");
    await answered(page);
    const text = await page.locator("article.assistant .text").textContent();
    check(text === "user: hello ", `the answer is ${text}`);
    check(/TTFT \d+ ms · [\d.]+ tokens\/s · 12 tokens/.test(await page.locator("article.assistant footer").textContent()), "facts");
    check(page.asked.every((asked) => asked.startsWith(url)), `other hosts: ${page.asked}`);
    check(!page.complaints.length, page.complaints.join());
  },
  async shows_text_as_it_comes_and_stops() {
    const page = await fresh();
    await setSettings(page, { "Max tokens": "400" });
    await ask(page, "a long one");
    await page.waitForFunction(() => document.querySelector("article[aria-busy] .text")?.textContent.length > 3);
    await page.keyboard.press("Escape");
    await answered(page);
    check(/stopped/.test(await page.locator("article.assistant footer").textContent()), "not said to be stopped");
    check(await page.getByRole("button", { name: "Send" }).isVisible(), "no Send");
  },
  async keeps_conversations_over_a_reload() {
    const page = await fresh();
    await setSettings(page, { "Max tokens": "5", "System prompt": "be brief" });
    await ask(page, "one");
    await answered(page);
    await page.reload();
    check((await page.locator("article").count()) === 2, "the conversation is gone");
    check((await page.locator("article.assistant .text").textContent()) === "syste", "the system prompt is not sent");
    await page.getByRole("button", { name: "New chat" }).click();
    check((await page.locator("article").count()) === 0, "no new chat");
    await page.getByRole("button", { name: "Delete one" }).click();
    check((await page.locator("#list li").count()) === 0, "not deleted");
  },
  async keeps_what_has_come_when_left() {
    const page = await fresh();
    await setSettings(page, { "Max tokens": "400" });
    await ask(page, "a long one");
    await page.waitForFunction(() => document.querySelector("article[aria-busy] .text")?.textContent.length > 3);
    await page.reload();
    check((await page.locator("article.assistant .text").textContent()).startsWith("user"), "nothing is kept");
  },
  async regenerates() {
    const page = await fresh();
    await setSettings(page, { "Max tokens": "5" });
    await ask(page, "one");
    await answered(page);
    await page.getByRole("button", { name: "Regenerate" }).click();
    await answered(page);
    check((await page.locator("article").count()) === 2, "not replaced");
  },
  async says_errors_as_the_api_does() {
    const page = await fresh();
    await setSettings(page, { "Max tokens": "100000" });
    await ask(page, "one");
    await page.getByRole("alert").filter({ hasText: "maximum context length" }).waitFor();
    check((await page.getByRole("alert").textContent()).startsWith("400: "), "no status");
  },
  async folds_calls_and_takes_results() {
    const page = await fresh();
    await page.route("**/v1/chat/completions", (route) => {
      const chunks = route.request().postDataJSON().messages.some((message) => message.role === "tool")
        ? [{ delta: { content: "done" }, finish_reason: "stop" }]
        : [{ delta: { reasoning_content: "let me see" } },
           { delta: { tool_calls: [{ index: 0, id: "c1", type: "function", function: { name: "f", arguments: "{\"x\":" } }] } },
           { delta: { tool_calls: [{ index: 0, function: { arguments: "1}" } }] }, finish_reason: "tool_calls" }];
      const body = chunks.map((choice) => `data: ${JSON.stringify({ choices: [{ index: 0, ...choice }] })}\n\n`).join("");
      route.fulfill({ contentType: "text/event-stream", body: `${body}data: [DONE]\n\n` });
    });
    await ask(page, "call it");
    await answered(page);
    const folded = page.locator("article.assistant details");
    check((await folded.count()) === 2 && !(await folded.first().getAttribute("open")), "not folded");
    await page.getByText("Calls f").click();
    check((await folded.nth(1).locator("pre").textContent()) === '{\n  "x": 1\n}', "arguments");
    await page.getByRole("textbox", { name: "Result of f" }).fill("42");
    await page.keyboard.press("Enter");
    await page.getByText("done", { exact: true }).waitFor();
  },
  async offers_several_models() {
    const page = await fresh({ withKey: false, path: "/docs" }); // with what follows in place before the page asks
    const listed = [{ id: "fake", owned_by: "pagoda-gateway" }, { id: "other", owned_by: "pagoda-gateway" }];
    await page.route("**/v1/models", (route) => route.fulfill({ json: { data: listed } }));
    const asked = [];
    await page.route("**/v1/chat/completions", (route) => {
      asked.push(route.request().postDataJSON().model);
      const body = `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: "yes" } }] })}\n\n`;
      route.fulfill({ contentType: "text/event-stream", body: `${body}data: [DONE]\n\n` });
    });
    await page.goto(url);
    await page.getByLabel("Model").selectOption("other");
    await ask(page, "one");
    await answered(page);
    check((await page.locator("article.assistant h2").textContent()) === "other", "who answered is not said");
    await page.reload(); // the choice stays
    await page.waitForFunction(() => document.getElementById("models").value === "other");
    await page.getByRole("button", { name: "Regenerate" }).click();
    await page.waitForFunction(() => !document.querySelector("article[aria-busy]"));
    check(asked.join() === "other,other", `asked ${asked}`);
    check(!(await page.getByRole("link", { name: "Live" }).isVisible()), "a gateway over upstreams has no live page");
  },
  async waits_for_models() {
    const page = await fresh({ withKey: false, path: "/docs" });
    let listed = [];
    await page.route("**/v1/models", (route) => route.fulfill({ json: { data: listed } }));
    await page.goto(url);
    await page.getByRole("alert").filter({ hasText: "No upstream lists a model" }).waitFor();
    listed = [{ id: "late", owned_by: "pagoda" }];
    await page.waitForFunction(() => document.getElementById("model").textContent === "late");
    check(!(await page.getByRole("alert").isVisible()), "the notice stays");
    check(await page.getByRole("link", { name: "Live" }).isVisible(), "no live page");
  },
  async works_from_the_keyboard() {
    const page = await fresh();
    check(await page.evaluate(() => document.activeElement.id === "input"), "the field has no focus");
    const reached = new Set();
    for (let count = 0; count < 14; count++) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    }
    for (const id of ["send", "new-chat", "open-settings", "log"]) check(reached.has(id), `no Tab leads to ${id}: ${[...reached]}`);
    for (const role of ["banner", "navigation", "complementary", "main", "log"]) {
      check((await page.getByRole(role).count()) === 1, `no ${role}`);
    }
    const unnamed = await page.evaluate(() => [...document.querySelectorAll("button")].filter((b) => !b.textContent && !b.ariaLabel).length);
    check(unnamed === 0, "a button has no name");
  },
  async a_frame_costs_the_same_however_long_the_answer_is() {
    const page = await fresh();
    const worst = await page.evaluate(async () => {
      const { LiveMessage } = await import("./page/render.js");
      const log = document.getElementById("log");
      const message = { role: "assistant", content: "", reasoning: "", calls: [] };
      const live = new LiveMessage(log, message);
      let changes = 0;
      new MutationObserver((records) => (changes += records.filter((r) => r.type === "childList").length))
        .observe(live.article, { childList: true, subtree: true });
      for (let round = 0; round < 200; round++) {
        message.content += "some more words ";
        live.show(message);
        if (round % 20 === 0) await new Promise(requestAnimationFrame);
      }
      await new Promise(requestAnimationFrame);
      await new Promise(requestAnimationFrame);
      return [changes, live.text.length, message.content.length];
    });
    check(worst[0] === 0 && worst[1] === worst[2], `rebuilt ${worst}`);
  },
  async asks_for_a_key() {
    if (!apiKey) return;
    const page = await fresh({ withKey: false });
    await page.getByRole("dialog").waitFor();
    check((await page.getByRole("alert").textContent()).includes("Incorrect API key"), "no reason");
    await page.getByLabel("API key").fill(apiKey);
    await page.getByRole("button", { name: "Done" }).click();
    await page.waitForFunction(() => document.getElementById("model").textContent === "fake");
  },
  async lists_the_api() {
    const page = await fresh({ path: "/docs" });
    await page.getByText("/v1/chat/completions", { exact: true }).first().click();
    await page.getByRole("link", { name: "ChatRequest" }).first().click();
    await page.getByText("temperature", { exact: true }).first().waitFor();
    check(page.asked.every((asked) => asked.startsWith(url)), `other hosts: ${page.asked}`);
    check(!page.complaints.length, page.complaints.join());
    await page.screenshot({ path: `${folder}/docs.png` });
  },
  async looks() {
    for (const width of [1280, 400]) {
      for (const scheme of ["light", "dark"]) {
        const page = await fresh({ width, scheme });
        await setSettings(page, { "Max tokens": "60" });
        await ask(page, "Write:\n```python\nprint('hello, a line of code that is rather long for a narrow screen')\n```\nand go on");
        await answered(page);
        await page.screenshot({ path: `${folder}/page-${width}-${scheme}.png` });
        const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        check(over <= 0, `${over} pixels too wide at ${width}`);
        if (width === 400) {
          await page.getByRole("button", { name: "Chats" }).click();
          await page.screenshot({ path: `${folder}/list-${width}-${scheme}.png` });
          await page.getByRole("button", { name: "Chats" }).click();
        }
        await page.getByRole("button", { name: "Settings" }).click();
        await page.screenshot({ path: `${folder}/settings-${width}-${scheme}.png` });
      }
    }
  },
};

for (const [name, run] of Object.entries(cases)) {
  let error = "";
  try {
    await run();
  } catch (thrown) {
    error = String(thrown.stack || thrown);
  }
  console.log("case", JSON.stringify({ name, error }));
}
await browser.close();
