// Keyboard, theme, relative time, copying, live updates. Pages work without it; it decides nothing.
"use strict";

const root = document.documentElement;
const find = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const language = root.lang || "en";

function remember(members) {
  return fetch("/preferences", { method: "POST", body: new URLSearchParams(members), redirect: "manual" });
}

// --- what only makes sense with script
function awaken(from = document) {
  all("[data-copy], [data-help], [data-theme-toggle]", from).forEach((element) => (element.hidden = false));
}

// --- clicks
document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a");
  if (!target) return;
  if (target.dataset.copy !== undefined) copy(target);
  else if (target.dataset.help !== undefined) find("#keys").showModal();
  else if (target.dataset.close !== undefined) target.closest("dialog").close();
  else if (target.dataset.themeToggle !== undefined) toggleTheme();
  else if (target.dataset.opens && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    openDecision(target.dataset.opens);
  }
});

async function copy(button) {
  await navigator.clipboard.writeText(button.dataset.copy);
  button.dataset.copied = "";
  setTimeout(() => delete button.dataset.copied, 1500);
}

function toggleTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember({ theme: root.dataset.theme });
}

function openDecision(verdict) {
  const dialog = document.getElementById(verdict);
  if (dialog && !find("dialog[open]")) dialog.showModal();
}

// A second press must not send a second review.
document.addEventListener("submit", (event) => {
  const button = find("[data-commit]", event.target);
  if (!button) return;
  if (event.target.dataset.sent !== undefined) event.preventDefault();
  event.target.dataset.sent = "";
});

// --- keys
const jumps = { o: "/", i: "/inbox", h: "/requests", s: "/servers", a: "/audit" };
let jumping = 0;

document.addEventListener("keydown", (event) => {
  const form = event.target.closest?.("form.decide");
  if (form && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
    return;
  }
  const writing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (root.dataset.keys === "off" || writing || event.ctrlKey || event.metaKey || event.altKey || find("dialog[open]")) return;
  if (press(event.key)) event.preventDefault();
});

function press(key) {
  if (jumping > Date.now()) {
    jumping = 0;
    const link = jumps[key] && find(`.rail a[href="${jumps[key]}"]`);
    if (link) link.click();
    return Boolean(link);
  }
  if (key === "g") jumping = Date.now() + 1500;
  else if (key === "j" || key === "k") step(key === "j" ? 1 : -1);
  else if (key === "a" || key === "d") openDecision(key === "a" ? "approve" : "deny");
  else if (key === "?") find("#keys")?.showModal();
  else if (key === "Escape") find("[data-back]")?.click();
  else return false;
  return true;
}

function step(by) {
  const links = all(".row-link");
  const at = links.indexOf(document.activeElement);
  links[Math.min(Math.max(at < 0 ? (by > 0 ? 0 : links.length - 1) : at + by, 0), links.length - 1)]?.focus();
}

// --- relative times
const words = new Intl.RelativeTimeFormat(language, { numeric: "always" });
const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function tick() {
  for (const time of all("time.ago")) {
    const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
    const [unit, size] = units.find(([, length]) => Math.abs(seconds) >= length * 1.5) || units[3];
    time.textContent = words.format(Math.round(seconds / size), unit);
  }
}

// --- live: the stream says that something changed; the page is fetched again and compared
const live = find("#live");
const region = () => find("#live-region");
let source, pause, news;

function say(state) {
  if (!live || live.dataset.state === state) return;
  live.dataset.state = state;
  live.textContent = live.dataset[state];
}

function busy() {
  const here = region();
  return Boolean(find("dialog[open]")) || here.contains(document.activeElement) || here.matches(":has(.rows:hover)");
}

async function refresh() {
  const answer = await fetch(location.href, { headers: { "Gatepass-Live": "1" } });
  if (answer.redirected && !busy()) location.reload(); // signed out meanwhile
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = find("#live-region", page);
  if (!fresh || fresh.dataset.state === region().dataset.state && rows(fresh) === rows(region())) return;
  if (busy()) announce(page);
  else swap(page);
}

const rows = (from) => all("[data-row]", from).map((row) => row.dataset.row).join() + (find(".outcome", from)?.textContent || "");

function swap(page) {
  region().replaceWith(document.adoptNode(find("#live-region", page)));
  const [bar, freshBar] = [find(".decision-bar"), find(".decision-bar", page)];
  if (bar && !freshBar) bar.remove();
  document.title = page.title;
  news?.remove();
  news = undefined;
  awaken(region());
}

// Nothing moves under a pointer or a form: what is new waits for a press.
function announce(page) {
  news?.remove();
  news = document.createElement("p");
  news.className = "banner banner-news";
  const button = document.createElement("button");
  button.className = "button";
  button.textContent = live.dataset.show;
  button.addEventListener("click", () => { all("dialog[open]").forEach((dialog) => dialog.close()); swap(page); });
  news.setAttribute("role", "status");
  news.append(live.dataset.news, button);
  (find("dialog[open]") || region()).prepend(news);
}

function listen() {
  if (!live || !region() || source) return;
  source = new EventSource("/live");
  source.addEventListener("open", () => { say("on"); refresh().catch(() => {}); });
  source.addEventListener("error", () => say("off")); // the browser tries again by itself
  source.addEventListener("requests", () => { clearTimeout(pause); pause = setTimeout(() => refresh().catch(() => {}), 150); });
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) { source?.close(); source = undefined; say("paused"); }
  else listen();
});

awaken();
tick();
setInterval(tick, 1000);
// Where no stream comes through, the page asks now and then.
setInterval(() => {
  if (!region() || live?.dataset.state !== "off") return;
  if (source?.readyState === EventSource.CLOSED) { source = undefined; listen(); }
  refresh().catch(() => {});
}, 10_000);
listen();
if (root.dataset.zone === "") remember({ zone: Intl.DateTimeFormat().resolvedOptions().timeZone });
