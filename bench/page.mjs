// Measures the page in a real Chromium; `page.py` starts it. Arguments: the server's URL, the path of
// playwright-core, and how long answers are.
import { createRequire } from "node:module";

const [url, playwright, tokens] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });

// When the first bytes of the answer reach the page, when a frame shows text, and how long frames take meanwhile.
await page.addInitScript(() => {
  window.seen = { arrived: 0, shown: 0, frames: [] };
  const read = ReadableStreamDefaultReader.prototype.read;
  ReadableStreamDefaultReader.prototype.read = async function () {
    const result = await read.call(this);
    if (typeof result.value === "string" && /"content":"[^"]/.test(result.value)) window.seen.arrived ||= performance.now();
    return result;
  };
  let last = 0;
  const frame = (now) => {
    const live = document.querySelector("article[aria-busy] .text");
    if (live && last) window.seen.frames.push(now - last);
    if (live?.textContent) window.seen.shown ||= performance.now();
    last = live ? now : 0;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
});
await page.addInitScript((limit) => localStorage.setItem("pagoda.settings", JSON.stringify({ max_tokens: limit })), tokens);
await page.goto(url);
const firsts = [];
let frames = [];
for (let round = 0; round < 5; round++) {
  await page.getByRole("button", { name: "New chat" }).click();
  await page.evaluate(() => (window.seen = { arrived: 0, shown: 0, frames: [] }));
  await page.getByRole("textbox", { name: "Message" }).fill("a long answer, please");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("article.assistant footer"), null, { timeout: 60000 });
  const seen = await page.evaluate(() => window.seen);
  firsts.push(seen.shown - seen.arrived);
  frames = frames.concat(seen.frames);
}
frames.sort((a, b) => a - b);
const at = (share) => frames[Math.min(frames.length - 1, Math.floor(frames.length * share))].toFixed(1);
console.log(`first token on the screen after ${firsts.map((ms) => ms.toFixed(1)).join(", ")} ms`);
console.log(`${frames.length} frames while answers stream: median ${at(0.5)}, 95 % ${at(0.95)}, 99 % ${at(0.99)}, longest ${at(1)} ms`);
await browser.close();
