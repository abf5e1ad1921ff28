// What the page does by itself, without asking the server. No library; nothing is fetched but answers to POST ask.

// -- questions and their answers -----------------------------------------------------------------------------------

const tab = Array.from(crypto.getRandomValues(new Uint32Array(4)), number => number.toString(36)).join("");
let link = "";       // of what is shown; every question is about it
let names = [];      // of the model's classes
let going = false;   // Back or Forward has been pressed, and is not answered yet
let waiting = 0, turn = Promise.resolve();

const refuse = words => {
  const box = document.createElement("div");
  Object.assign(box, { className: "vt-problem", role: "alert", textContent: words });
  $("#vt-status").replaceChildren(box);
};
const busy = by => { waiting += by; body.toggleAttribute("data-busy", waiting > 0); };
const reading = words => { $(".vt-reading").textContent = words; body.toggleAttribute("data-reading", !!words); };  // the old map is grey

// Questions are asked one after the other, each about what the last has left.
const queue = work => {
  busy(1);
  turn = turn.then(() => new Promise(next => {
    let ended = false;
    const end = () => { if (!ended) { ended = true; busy(-1); next(); } };
    work(end).catch(error => refuse(error.message)).finally(() => { reading(""); end(); });
  }));
  return turn;
};
const post = async (what, given = {}, file = null) => {
  const question = JSON.stringify({ do: what, tab, link, given }), form = new FormData();
  form.append("question", question);
  if (file) form.append("file", file, file.name);
  const sent = file ? { body: form } : { body: question, headers: { "Content-Type": "application/json" } };
  const answer = await fetch("ask", { method: "POST", ...sent })
    .catch(() => { throw new Error("The server does not answer: is it still running?"); });
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({}));
  throw new Error(detail || `The server answers with an error (${answer.status}).`);
};
const events = async (answer, each) => {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read().catch(() => { throw new Error("The answer did not arrive whole: try again."); });
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) each(JSON.parse(line));
  }
};
const show = (event, replace) => {
  if (event.names) names = event.names;
  for (const [id, html] of Object.entries(event.html)) put(document.getElementById(id), html);
  for (const [name, value] of Object.entries(event.controls ?? {})) set(name, value);
  if (event.words) words(event.words);
  announce();
  if (event.link === undefined) return;
  link = event.link;
  for (const one of all("[data-example]")) one.setAttribute("aria-pressed", String(one.dataset.example === new URLSearchParams(link).get("example")));
  if (going || location.search === "?" + link) return;
  history[replace ? "replaceState" : "pushState"](null, "", "?" + link);  // one entry for each question
};
// What is drawn, for those who hear the page: how far a drawing has come, every few seconds, and at last the map's words.
const announce = () => {
  const shown = $(".vt-view", $("[role=tabpanel]:not([hidden])")), progress = $("[role=progressbar] p", shown);
  if (progress && Date.now() - (announce.last ?? 0) < 4000) return;
  $("#vt-live").textContent = (progress?.textContent ?? $(".vt-map", shown)?.alt) || "";
  announce.last = Date.now();
};
// The words of an answer: begun anew, more of them, or none.
const words = news => {
  const root = $("#vt-words");
  if (news.pictures) words.shown = showWords(root, news);
  else if (news.words) words.shown?.tell(news);
  else { root.replaceChildren(); words.shown = null; }
};
const ask = (what, given, file) => queue(async () => events(await post(what, given, file), event => show(event)));

const arrive = back => queue(async () => {
  going = false;
  link = location.search.slice(1);
  await events(await post("arrive", { back }), event => show(event, true));
  const view = new URLSearchParams(link).get("view");
  if ($(`#vt-draw-${view}`) && $(`#vt-view-${view} > .vt-wait`) && $("[data-class]")) draw(view);  // a link has it drawn
});
addEventListener("popstate", () => { if (!going) { going = true; arrive(true); } });
addEventListener("pagehide", () => navigator.sendBeacon("ask", new Blob([JSON.stringify({ do: "leave", tab })], { type: "application/json" })));
addEventListener("pageshow", e => { if (e.persisted) arrive(true); });

// A long drawing goes on while other things are asked; its button to stop is there as long as it does.
const drawing = {};
const draw = view => {
  const form = $(`[data-draw=${view}]`), mine = drawing[view] = {};
  queue(async next => {
    const stop = $("[data-stop]", form);
    stop.hidden = false;
    try {
      const given = { view, ...Object.fromEntries([...new FormData(form)].filter(([, value]) => typeof value === "string")) };
      await events(await post("draw", given), event => { if (drawing[view] === mine) show(event); next(); });
    } finally { if (drawing[view] === mine) stop.hidden = true; }
  });
};

const save = kind => queue(async () => {
  const answer = await post("download", { kind }), anchor = document.createElement("a");
  anchor.download = decodeURIComponent(answer.headers.get("content-disposition").split("''")[1]);
  anchor.href = URL.createObjectURL(await answer.blob());
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
  say(`${anchor.download} saved`);
});
const copy = async (text, what) => {
  try { await navigator.clipboard.writeText(text); }
  catch {  // outside of https and loopback there is no clipboard to write to
    const area = document.createElement("textarea");
    area.value = text; body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  say(`${what} copied`);
};
const give = (field, file) => {
  if (!file) return;
  const what = field.dataset.file, large = file.size > Number(field.dataset.limit);
  if (what === "upload") reading(`Reading ${file.name} …`);
  ask(what, {}, large ? null : file);  // the server says why
};

// -- what is shown -------------------------------------------------------------------------------------------------

// What is focused or unfolded before a part of the page is drawn anew is so after it.
const key = one => {
  for (const name of ["class", "pick", "example", "copy", "save"]) {
    if (one.dataset[name] !== undefined) return `[data-${name}="${one.dataset[name]}"]`;
  }
  return one.id ? `#${CSS.escape(one.id)}` : one.matches(".vt-glass[tabindex]") ? ".vt-glass[tabindex]" : null;
};
const put = (element, html) => {
  const focused = element.contains(document.activeElement) && key(document.activeElement);
  const unfolded = $("details[open]", element);
  element.innerHTML = html;
  if (focused) $(focused, element)?.focus({ preventScroll: true });
  if (unfolded) for (const one of all("details", element)) one.open = true;
  opacity(opacity.value ?? 1);
  for (const glass of all(".vt-glass[data-row]", element)) place(glass, "vt-kept", +glass.dataset.row, +glass.dataset.col);
  const slider = $(".vt-player input", element);
  if (slider) frame(element, +slider.value);
};
const set = (name, value) => {
  if (name === "view") look(value);
  for (const one of all(`[name="${name}"]`)) {
    if (one.type === "radio") one.checked = one.value === value; else one.value = value;
    if (one.type === "range") tell(one);
  }
};
const look = view => {
  body.dataset.view = view;
  for (const one of all("[role=tab]")) {
    const chosen = one.dataset.view === view;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
};
const tell = range => {
  const said = { until: value => `${Math.round(100 * value)} %`, budget: value => +value ? `at most ${value}` : "any" }[range.name];
  $(`output[for=${range.id}]`).textContent = range.ariaValueText = said ? said(range.value) : range.value;
};
const opacity = value => {
  opacity.value = value;
  root.style.setProperty("--vt-opacity", value);
  for (const one of all("[data-opacity]")) {
    one.value = value;
    one.parentNode.querySelector("output").textContent = `${Math.round(100 * value)} %`;
  }
};

// Films: a slider that shows one of several frames, and a button that plays them.
const frame = (element, number) => {
  for (const one of all(".vt-frame", element)) one.toggleAttribute("hidden", +one.dataset.frame !== number);
  const slider = $(".vt-player input", element), words = slider.dataset.words.split("|");
  $(".vt-player output", element).textContent = words[number] ?? number;
  slider.setAttribute("aria-valuetext", words[number] ?? number);
};
const play = element => {
  const slider = $(".vt-player input", element), last = +slider.max;
  let at = +slider.value >= last ? 0 : +slider.value;
  clearInterval(play.timer);
  play.timer = setInterval(() => {
    if (!slider.isConnected || at > last) { clearInterval(play.timer); return; }
    slider.value = at; frame(element, at); at += 1;
  }, 450);
};

// Pointing at patches, by mouse, finger or keyboard.
const part = (glass, kind) => {
  let box = $("." + kind, glass);
  if (!box) {
    box = document.createElement("div");
    box.className = kind;
    glass.append(box);
  }
  return box;
};
const place = (glass, kind, row, col) => {
  const { rows, cols } = glass.dataset;
  Object.assign(part(glass, kind).style, {
    left: `${100 * col / cols}%`, top: `${100 * row / rows}%`, width: `${100 / cols}%`, height: `${100 / rows}%`,
  });
};
const point = (glass, row, col) => {
  place(glass, "vt-at", row, col);
  const tip = part(glass, "vt-tip");
  tip.setAttribute("role", "status");
  tip.textContent = `row ${row + 1}, column ${col + 1}: ${glass.dataset.scores.split(" ")[row * glass.dataset.cols + col]}`;
};
const under = (glass, e) => {
  const box = glass.getBoundingClientRect(), edge = glass.clientLeft;
  const count = (at, start, length, parts) => Math.min(parts - 1, Math.max(0, Math.floor((at - start - edge) / (length - 2 * edge) * parts)));
  return [count(e.clientY, box.top, box.height, +glass.dataset.rows), count(e.clientX, box.left, box.width, +glass.dataset.cols)];
};
const GLASS = ".vt-glass[data-rows]:not([data-still])";
const choose = (row, col) => ask("change", { row, col });
document.addEventListener("mousemove", e => { const glass = e.target.closest(GLASS); if (glass) point(glass, ...under(glass, e)); });
document.addEventListener("mouseout", e => {
  const glass = e.target.closest(GLASS);
  if (glass && !glass.contains(e.relatedTarget)) for (const one of all(".vt-at, .vt-tip", glass)) one.remove();
});
const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const onGlass = (glass, e) => {
  const { rows, cols, row, col } = glass.dataset;
  const at = (glass.dataset.at ?? `${row ?? rows >> 1} ${col ?? cols >> 1}`).split(" ").map(Number);
  if (e.key in arrows) {
    const moved = [rows, cols].map((count, side) => Math.min(count - 1, Math.max(0, at[side] + arrows[e.key][side])));
    glass.dataset.at = moved.join(" ");
    point(glass, ...moved);
  } else if (e.key === "Enter" || e.key === " ") choose(...at);
  else return;
  e.preventDefault();
};

// -- the classes: two fields that find any; exact names first, then beginnings, then the rest -------------------------

const LISTED = 60;
const plain = text => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");
export const rank = (names, typed) => {
  const wanted = plain(typed.trim());
  const found = [];
  names.forEach((name, index) => {
    const text = plain(name), at = text.indexOf(wanted);
    if (at < 0 && String(index) !== wanted) return;
    const order = text === wanted ? 0 : String(index) === wanted ? 1 : at === 0 ? 2 : /\W/.test(text[at - 1] || "x") ? 3 : 4;
    found.push({ name, index, order });
  });
  return found.sort((one, other) => one.order - other.order || one.index - other.index);
};
const listOf = field => $("[role=listbox]", field.parentNode);
const close = (field, restore) => {
  listOf(field).hidden = true;
  field.setAttribute("aria-expanded", "false");
  field.removeAttribute("aria-activedescendant");
  if (restore) field.value = field.defaultValue;
};
const highlight = (field, at) => {
  const options = all("[role=option]", listOf(field));
  options.forEach((one, number) => one.setAttribute("aria-selected", String(number === at)));
  if (!options[at]) return;
  field.setAttribute("aria-activedescendant", options[at].id);
  options[at].scrollIntoView({ block: "nearest" });
};
const open = (field, typed) => {
  const { combo, empty } = field.parentNode.dataset, found = rank(names, typed);
  const option = (text, index, number) => {
    const one = document.createElement("li");
    Object.assign(one, { id: `vt-option-${combo}-${number}`, role: "option", textContent: text });
    one.dataset.index = index;
    return one;
  };
  const options = found.slice(0, LISTED).map((one, number) => option(one.name, one.index, number + 1));
  if (empty && !typed.trim()) options.unshift(option(empty, "", 0));
  if (found.length > LISTED || !options.length) {
    const rest = document.createElement("li");
    rest.className = "vt-rest";
    rest.textContent = found.length ? `and ${found.length - LISTED} more: go on typing` : "no class has this in its name";
    options.push(rest);
  }
  listOf(field).replaceChildren(...options);
  listOf(field).hidden = false;
  field.setAttribute("aria-expanded", "true");
  highlight(field, typed.trim() ? 0 : -1);
};
const pick = (field, index) => {
  close(field, false);
  ask("change", { [field.parentNode.dataset.combo]: index === "" ? null : Number(index) });
};
const onCombo = (field, e) => {
  const shut = field.getAttribute("aria-expanded") === "false", options = all("[role=option]", listOf(field));
  const at = options.findIndex(one => one.getAttribute("aria-selected") === "true");
  if (e.key === "ArrowDown" || e.key === "ArrowUp") {
    const step = e.key === "ArrowDown" ? 1 : -1;
    if (shut) open(field, ""); else highlight(field, (Math.max(at + step, step < 0 ? -1 : 0) + options.length) % options.length);
  } else if (e.key === "Enter" && !shut && options[at]) pick(field, options[at].dataset.index);
  else if (e.key === "Escape" && !shut) close(field, true);
  else return;
  e.preventDefault();
};

// -- events: one listener for each kind, whatever is drawn anew -----------------------------------------------------

const clicks = {
  theme: otherTheme,
  view: one => { look(one.dataset.view); ask("change", { view: one.dataset.view }); },
  example: one => { reading(`Reading ${one.title} …`); ask("example", { example: one.dataset.example }); },
  class: one => ask("choose", { index: one.dataset.class === "swap" ? null : Number(one.dataset.class) }),
  pick: one => { const [layer, head] = one.dataset.pick.split(" ").map(Number); ask("change", { layer, head }); },
  drop: () => choose(null, null),
  save: one => save(one.dataset.save),
  stop: () => post("stop").catch(error => refuse(error.message)),
  copy: one => one.dataset.copy === "link" ? copy(location.href, "Link")
    : copy($(`pre[data-text=${one.dataset.copy}]`).textContent, one.dataset.copy === "python" ? "Python" : "Command"),
  play: one => play(one.closest(".vt-view")),
};
document.addEventListener("click", e => {
  const button = e.target.closest("button[type=button]"), glass = e.target.closest(GLASS);
  for (const [name, act] of Object.entries(clicks)) if (button?.dataset[name] !== undefined) return act(button);
  if (e.target.matches("[role=combobox][aria-expanded=false]")) { e.target.select(); open(e.target, ""); }
  if (glass) choose(...under(glass, e));
});
document.addEventListener("submit", e => { e.preventDefault(); draw(e.target.dataset.draw); });
document.addEventListener("mousedown", e => {  // before the field loses the focus
  const list = e.target.closest("[role=listbox]"), option = e.target.closest("[role=option]");
  if (list) e.preventDefault();
  if (option) pick($("input", list.parentNode), option.dataset.index);
});
document.addEventListener("focusout", e => { if (e.target.matches("[role=combobox]")) close(e.target, true); });
document.addEventListener("input", e => {
  const one = e.target;
  if (one.matches("[role=combobox]")) open(one, one.value);
  else if (one.matches("[data-opacity]")) opacity(+one.value);
  else if (one.matches(".vt-player input")) { clearInterval(play.timer); frame(one.closest(".vt-view"), +one.value); }
  else if (one.type === "range") tell(one);
});
document.addEventListener("change", e => {
  const one = e.target;
  if (one.type === "file") { give(one, one.files[0]); one.value = ""; }
  else if (one.matches("[data-change]")) {
    if (one.name === "model") reading(`Loading ${one.value} …`);
    ask("change", { [one.name]: one.value });
  }
});
document.addEventListener("keydown", e => {
  const one = e.target;
  if (one.matches?.("[role=combobox]")) onCombo(one, e);
  else if (one.matches?.(GLASS)) onGlass(one, e);
  else if (one.matches?.("[role=tab]") && e.key in arrows) {
    const tabs = all("[role=tab]"), step = arrows[e.key][0] + arrows[e.key][1];
    tabs[(tabs.indexOf(one) + step + tabs.length) % tabs.length].focus();
    e.preventDefault();
  }
  // Escape lets a chosen patch go, wherever the focus is, unless a field has a use for it.
  if (e.key === "Escape" && !e.defaultPrevented && $(".vt-glass[data-row]")?.checkVisibility()) choose(null, null);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, e => {
    const zone = e.target.closest?.(".vt-drop");
    if (!zone) return;
    e.preventDefault();
    zone.classList.toggle("vt-over", kind === "dragover");
    if (kind === "drop") give($("input", zone), e.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", e => {
  give($("[data-file=upload]"), [...(e.clipboardData?.files ?? [])].find(one => one.type.startsWith("image/")));
});

for (const one of all(".vt-field input[type=range]")) tell(one);
arrive(false);
