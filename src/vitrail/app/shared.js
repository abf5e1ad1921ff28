// What the scripts of all pages share: finding elements, paper or dark, a word in the corner.
const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const body = document.body, root = document.documentElement;

// Paper or dark: as the system is, until somebody says otherwise.
const kept = name => { try { return localStorage.getItem(name); } catch { return null; } };
const theme = word => { root.dataset.theme = word; };
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
if (kept("vitrail-theme")) theme(kept("vitrail-theme"));
const otherTheme = () => {
  theme(isDark() ? "light" : "dark");
  try { localStorage.setItem("vitrail-theme", root.dataset.theme); } catch { /* not kept */ }
};

// A word in the corner, for a moment.
const say = text => {
  const box = $(".vt-said");
  box.textContent = text;
  box.classList.add("vt-on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => box.classList.remove("vt-on"), 2200);
};
