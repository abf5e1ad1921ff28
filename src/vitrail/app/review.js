// The review page: one suspect at a time. Pictures of the next ones are fetched and decoded ahead, and every decision is
// posted at once; it counts when the server has answered, which it does when the decision is on the disk.
// Whatever comes from outside (file names, class names) is set as text.

const VERDICTS = { keep: "kept", relabel: "relabelled", both: "both right", drop: "dropped", skip: "skipped" };
const AHEAD = 6, HELD = 30;  // suspects whose pictures are fetched ahead, and kept

let all_ = [];               // the suspects in their order
let names = {}, pairs = [];
let decisions = {}, version = 0, last = null;  // what the journal holds, by its last answer
const places = new Map();    // of a suspect by its image
const filter = { class: "", pair: "", show: "all" };
let current = null;          // the image that is shown; null where none is left

const name = index => names[index] ?? `class ${index}`;
const at = image => all_[places.get(image)];
const source = image => at(image)?.source ?? `image ${image}, no suspect any more`;
const alert = (words, ...buttons) => put("#rv-alert", ...(words ? [make("span", { textContent: words }), ...buttons] : []));

// -- pictures of suspects and classes --------------------------------------------------------------------------------

const typical = shelf(300, async index => (await ask(`typical/${index}`)).images);
const suspect = shelf(HELD, async image => {
  const { given, suggested } = at(image), of = index => index === null ? null : typical(index).promise;
  const [told, ofGiven, ofSuggested] = await Promise.all([ask(`suspect/${image}`), of(given), of(suggested)]);
  const kinds = ["photo", "contrast", "given", "suggested"];
  const [view, ...drawn] = await Promise.all([told.view, ...kinds.map(kind => told[kind])].map(pictured));
  const strips = {};
  for (const [row, images] of Object.entries({ given: ofGiven, suggested: ofSuggested, duplicates: told.duplicates })) {
    strips[row] = images && await Promise.all(images.map(async one => ({ ...one, element: await pictured(one.picture) })));
  }
  return { view, more: told.more, pictures: Object.fromEntries(kinds.map((kind, n) => [kind, drawn[n]])), strips };
});

// -- which suspects are gone through -------------------------------------------------------------------------------

const pairOf = one => one.given === null || one.suggested === null ? "" : [one.given, one.suggested].sort((a, b) => a - b).join(" ");
const passes = one => (!filter.class || String(one.given) === filter.class || String(one.suggested) === filter.class)
  && (!filter.pair || pairOf(one) === filter.pair);
const verdict = image => decisions[image] ?? null;
const shows = (one, soon = {}) => {
  const decided = one.image in soon ? soon[one.image] : verdict(one.image);
  return passes(one) && (filter.show === "all" || filter.show === (decided ?? "undecided"));
};
// The next one after an image: where verdicts are not what is filtered by, the next that is not decided, from the top
// again after the last. `soon` are verdicts that are on their way.
const following = (image, soon = {}) => {
  const start = (places.get(image) ?? -1) + 1, order = [...all_.slice(start), ...all_.slice(0, Math.max(0, start - 1))];
  const open = one => filter.show in VERDICTS || (one.image in soon ? soon[one.image] : verdict(one.image)) === null;
  return order.find(one => shows(one, soon) && open(one))?.image ?? null;
};
const beside = (image, step) => {
  const start = places.get(image) ?? (step > 0 ? -1 : all_.length);
  for (let n = start + step; n >= 0 && n < all_.length; n += step) if (shows(all_[n])) return all_[n].image;
  return null;
};

// -- what is shown -------------------------------------------------------------------------------------------------

const bold = (index, side) => make("b", { className: side, textContent: name(index) });
const small = text => make("small", { textContent: ` (${text})` });
const sentence = one => {
  const { given, suggested } = one, red = given !== null && bold(given, "vt-for");
  if (given === null) return ["label ", bold(suggested, "vt-against"), " may be missing", small(`the model gives it ${one.p_suggested}`)];
  if (suggested === null) return ["label ", red, " is doubtful", small(`the model gives it ${one.p_given}`)];
  return ["labelled ", red, small(one.p_given), " — the model says ", bold(suggested, "vt-against"), small(one.p_suggested)];
};
const choices = ({ given, suggested }) => ({
  keep: given === null ? "Keep the labels" : `Keep ${name(given)}`,
  relabel: suggested === null ? `Not ${name(given)}` : given === null ? `Add ${name(suggested)}` : `Relabel as ${name(suggested)}`,
  both: given === null || suggested === null ? null : "Both are right",
  drop: "Drop the image",
  skip: "Skip",
});
const facts = one => {
  const parts = [], decided = verdict(one.image);
  if (decided) parts.push(make("span", { className: "rv-badge" }, make("i", { data: { is: decided } }), `decided: ${VERDICTS[decided]}`));
  parts.push(make("span", { textContent: `margin ${one.margin}` }));
  parts.push(make("span", { textContent: one.issue ? "marked by confident learning" : "not marked by confident learning", className: one.issue ? "rv-marked" : "" }));
  if (one.labels.length > 1) parts.push(make("span", { textContent: `all its labels: ${one.labels.map(name).join(", ")}` }));
  if (one.duplicates) parts.push(make("span", { textContent: one.duplicates === 1 ? "1 near duplicate" : `${one.duplicates} near duplicates` }));
  return parts;
};
const caption = (kind, ...parts) => { $(`[data-caption=${kind}]`).replaceChildren(...parts); };

const clear = () => { for (const box of all(".rv-glass[data-picture], .rv-strip", $("#rv-suspect"))) box.replaceChildren(); };

// The words of a suspect, at once; its pictures, none of another one, as soon as they are there.
let turn = 0;
const show = (image, hurried = false) => {
  const mine = ++turn;
  current = image;
  $("#rv-suspect").hidden = image === null;
  $("#rv-none").hidden = image !== null;
  remember();
  tell();
  if (image === null) { $("#rv-suspect").dataset.image = ""; return; }
  const one = at(image), { given, suggested } = one, single = given === null || suggested === null;
  put("#rv-words", ...sentence(one));
  $("#rv-file").textContent = $("#rv-file").title = one.source;
  const maps = $(".rv-maps");
  maps.classList.toggle("rv-one", single);
  maps.classList.toggle("rv-none-given", given === null);
  if (!single) {
    caption("contrast", bold(given, "vt-for"), " or ", bold(suggested, "vt-against"), "?");
    caption("red", name(given));
    caption("blue", name(suggested));
  }
  for (const [kind, index] of [["given", given], ["suggested", suggested]]) {
    if (index !== null) caption(kind, make("span", { className: "vt-for", textContent: "for" }), " and ", make("span", { className: "vt-against", textContent: "against" }), " ", make("b", { textContent: name(index) }));
  }
  const heading = (row, index) => $(`[data-row=${row}] h3`).replaceChildren("typical ", index === null ? "" : bold(index, row === "given" ? "vt-for" : "vt-against"));
  heading("given", given);
  heading("suggested", suggested);
  for (const [kind, words] of Object.entries(choices(one))) {
    const act = $(`[data-verdict=${kind}]`);
    act.disabled = words === null;
    $("span", act).textContent = words ?? "Both are right";
  }
  const fetched = () => {
    const found = suspect(image);
    if (found.value) draw(one, found.value);
    else {
      clear();
      found.promise.then(value => { if (mine === turn) draw(one, value); },
        error => { if (mine === turn) alert(`The pictures cannot be shown: ${error.message}`, button("Try again", () => { alert(); show(image); })); });
    }
    ahead(mine);
  };
  if (!hurried) return fetched();
  clear();
  setTimeout(() => { if (mine === turn) fetched(); }, 80);  // an arrow is held down: pictures of what it passes are not asked for
};
const draw = (one, { view, more, pictures, strips }) => {
  for (const [kind, picture] of Object.entries(pictures)) {
    const box = $(`.rv-glass[data-picture=${kind}]`);
    if (!picture) { box.replaceChildren(make("p", { className: "vt-none", textContent: "no picture was stored" })); continue; }
    const said = { photo: `Photograph ${one.source}`, contrast: `Map of ${name(one.given)} against ${name(one.suggested)}`, given: `Map of ${name(one.given)}`, suggested: `Map of ${name(one.suggested)}` };
    picture.alt = said[kind];
    const under = kind === "photo" || !view ? null : view.cloneNode();
    if (under) under.className = "rv-view";
    box.replaceChildren(...(under ? [under, picture] : [picture]));
  }
  for (const [row, images] of Object.entries(strips)) {
    const section = $(`[data-row=${row}]`);
    section.hidden = !images || (row === "duplicates" && !images.length);
    $(".rv-strip", section).replaceChildren(...(images ?? []).map(other => thumb(one, other, row)));
    if (images && !images.length) $(".rv-strip", section).append(make("p", { className: "vt-none", textContent: "every image with this label is in doubt, or none has it" }));
  }
  $("[data-row=duplicates] h3").textContent = `near duplicates${more ? `, and ${more} more` : ""}`;
  $("#rv-suspect").dataset.image = one.image;
  $("#rv-live").textContent = $("#rv-words").textContent;
};
const thumb = (one, other, row) => {
  const words = other.labels.map(name).join(", "), same = String(other.labels) === String(one.labels);
  const picture = other.element ?? make("div", { className: "rv-blank" });
  picture.title = `${other.source}: ${words}`;
  if (other.element) picture.alt = picture.title;
  const figure = make("figure", {}, picture);
  if (row === "duplicates") {
    figure.append(make("figcaption", { textContent: words, title: picture.title }));
    figure.toggleAttribute("data-differs", !same);
    if (other.suspect) figure.dataset.go = other.image;
  }
  return figure;
};
const nothing = () => {
  const left = all_.filter(one => verdict(one.image) === null).length, filtered = filter.class || filter.pair || filter.show !== "all";
  const words = !all_.length ? "This audit has no suspect." : left ? `Nothing is left with these filters; ${left} of all suspects are not decided.`
    : "All suspects are decided. The decisions are in the folder of the audit; take them home as CSV or Parquet above.";
  put("#rv-none", make("p", { textContent: words }), ...(filtered ? [button("All suspects", everything)] : []));
  $("#rv-live").textContent = words;
};
// One after the other, so that what is looked at comes first.
const ahead = async mine => {
  const soon = onTheWay();
  for (let image = current, n = 0; n < AHEAD; n += 1) {
    soon[image] = verdict(image) ?? "skip";  // passed by
    image = following(image, soon);
    if (image === null || mine !== turn) return;
    try { await suspect(image).promise; } catch { return; }
  }
};

// Numbers: how far it is, what undo takes back, and how many each filter shows.
const tell = () => {
  const count = {};
  for (const one of all_) count[verdict(one.image) ?? "undecided"] = (count[verdict(one.image) ?? "undecided"] ?? 0) + 1;
  const done = all_.length - (count.undecided ?? 0), waiting = queue.length;
  put("#rv-track", ...Object.keys(VERDICTS).map(is => {
    const part = make("i", { data: { is }, title: `${count[is] ?? 0} ${VERDICTS[is]}` });
    part.style.width = `${100 * (count[is] ?? 0) / all_.length}%`;
    return part;
  }));
  const track = $("#rv-track");
  track.ariaValueMax = all_.length;
  track.ariaValueNow = done;
  $("#rv-done").textContent = `${done} of ${all_.length} decided${waiting ? ", saving …" : ""}`;
  const shown = all_.filter(one => shows(one) || one.image === current), place = shown.findIndex(one => one.image === current);
  $("#rv-where").textContent = current === null ? `${shown.length} shown` : `${place + 1} of ${shown.length}`;
  const named = { all: "all", undecided: "undecided", ...VERDICTS }, select = $("[name=show]");
  if (!select.options.length) select.append(...Object.keys(named).map(value => make("option", { value })));
  for (const option of select.options) option.textContent = `${named[option.value]} (${option.value === "all" ? all_.length : count[option.value] ?? 0})`;
  select.value = filter.show;
  const decided = current === null ? null : verdict(current);
  for (const one of all("[data-verdict]")) one.setAttribute("aria-pressed", String(one.dataset.verdict === decided));
  const undo = $("[data-undo]");
  undo.disabled = last === null && !waiting;
  undo.title = last === null ? "" : `take back: ${VERDICTS[verdict(last)] ?? ""} ${source(last)}`;
  if (current !== null) put("#rv-facts", ...facts(at(current))); else nothing();
};

// -- decisions: posted one after the other, counted when they are on the disk -----------------------------------------

const queue = [];  // acts that are not answered yet, oldest first
const channel = new BroadcastChannel("vitrail-review");
const onTheWay = () => Object.fromEntries(queue.filter(act => act.verdict).map(act => [act.image, act.verdict]));
const adopt = state => {
  ({ version, last, decisions } = state);
  tell();
};
const refresh = async () => { if (!queue.length) adopt(await ask("state")); };
const decide = kind => {
  if (current === null || $(`[data-verdict=${kind}]`).disabled) return;
  enqueue({ image: current, verdict: kind });
  show(following(current, onTheWay()));
};
const undo = () => { if (last !== null || queue.length) enqueue({}); };
const enqueue = act => {
  queue.push(act);
  if (queue.length === 1) send();
};
const send = async () => {
  while (queue.length) {
    const act = queue[0], image = act.verdict ? act.image : last;
    try {
      if (image !== null) {
        const news = await ask(...(act.verdict ? ["decide", { image, verdict: act.verdict, was: verdict(image) }] : ["undo", { image }]));
        if (news.verdict === null) delete decisions[image]; else decisions[image] = news.verdict;
        const missed = news.version !== version + 1;  // another tab has decided, too
        ({ version, last } = news);
        if (missed) adopt(await ask("state"));
        channel.postMessage(version);
        alert();
      }
      queue.shift();
    } catch (error) {
      return lost(act, image, error);
    }
    if (act.verdict) tell();
    else if (image !== null) {
      say(`taken back: ${source(image)}`);
      if (places.has(image)) show(image); else tell();
    }
  }
};
// A decision that is not on the disk is shown loudly, with what it was about; those after it are not tried.
const lost = (act, image, error) => {
  const later = queue.length - 1, what = act.verdict ? `“${VERDICTS[act.verdict]}” for ${source(image)}` : "taking back";
  queue.length = 0;
  if (error.state) adopt(error.state);
  const again = error.status === 401 ? [button("Load the page", () => location.reload())] : [];
  alert(`NOT SAVED: ${what}: ${error.message}${later ? ` (and ${later} after it)` : ""}`, ...again, button("Close", () => alert()));
  if (places.has(image)) show(image); else tell();
};

// -- filters, views, and the address -------------------------------------------------------------------------------

const choose = () => {
  for (const kind of ["class", "pair", "show"]) {
    const select = $(`[name=${kind}]`);
    select.value = filter[kind];
    if (select.selectedIndex < 0) filter[kind] = select.value = kind === "show" ? "all" : "";
    select.classList.toggle("rv-set", filter[kind] !== "" && filter[kind] !== "all");
  }
  $("[data-all]").hidden = !(filter.class || filter.pair || filter.show !== "all");
};
const settle = () => {
  choose();
  const stays = current !== null && shows(at(current)) && filter.show !== "all";
  show(stays ? current : following(null, onTheWay()) ?? beside(null, 1));
};
const everything = () => { Object.assign(filter, { class: "", pair: "", show: "all" }); settle(); };
const options = (kind, label, of, words) => {
  const count = new Map();
  for (const one of all_) for (const value of new Set(of(one))) count.set(value, (count.get(value) ?? 0) + 1);
  const found = [...count].map(([value, many]) => ({ value, many, words: words(value) })).sort((a, b) => b.many - a.many || a.words.localeCompare(b.words));
  $(`[name=${kind}]`).replaceChildren(make("option", { value: "", textContent: label }),
    ...found.map(one => make("option", { value: one.value, textContent: `${one.words} (${one.many})` })));
};
const look = view => {
  for (const one of all("[role=tab]")) {
    const chosen = one.dataset.view === view;
    one.setAttribute("aria-selected", String(chosen));
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
  remember();
};
const onPairs = () => !$("#rv-pairs").hidden;
const remember = () => {
  const words = new URLSearchParams();
  for (const [kind, value] of Object.entries(filter)) if (value && value !== "all") words.set(kind, value);
  if (current !== null) words.set("image", current);
  if (onPairs()) words.set("view", "pairs");
  history.replaceState(null, "", `?${words}`);
};

// -- pairs of classes ----------------------------------------------------------------------------------------------

const between = pair => all_.filter(one => pairOf(one) === [pair.shown, pair.other].sort((a, b) => a - b).join(" "));
const listPairs = () => {
  const rows = pairs.map((pair, number) => {
    const range = make("div", { className: "rv-interval" }, make("i"), make("b"));
    Object.assign($("i", range).style, { left: `${100 * pair.low}%`, width: `${100 * (pair.high - pair.low)}%` });
    $("b", range).style.left = `${100 * pair.share}%`;
    range.toggleAttribute("data-high", pair.share > 0.5);
    const cell = text => make("td", { textContent: text });
    const open = make("button", { type: "button", textContent: name(pair.shown) });
    return make("tr", { data: { pair: number } }, make("td", {}, open), cell(name(pair.other)), make("td", {}, range),
      ...[pair.said, pair.adjusted, pair.margin, pair.images, between(pair).length].map(cell));
  });
  $(".rv-table tbody").replaceChildren(...rows);
  if (!pairs.length) put("#rv-pair", make("p", { className: "vt-note", textContent: "No pair of classes was tested." }));
};
let asked = 0;
const showPair = async number => {
  const pair = pairs[number], mine = ++asked, { length } = between(pair);
  for (const row of all("[data-pair]")) row.setAttribute("aria-current", String(+row.dataset.pair === number));
  const { images } = await ask(`pair/${pair.shown}/${pair.other}`);
  if (mine !== asked) return;
  const side = { "-1": other => [" argues for ", bold(pair.other, "vt-against")], 0: () => [" undecided"], 1: () => [" argues for ", bold(pair.shown, "vt-for")] };
  const grid = images.map(one => make("figure", { data: { side: one.side } },
    make("div", { className: "rv-glass" }, make("img", { src: one.picture, alt: `Map of ${name(pair.shown)} against ${name(pair.other)} over ${one.source}` })),
    make("figcaption", {}, `${one.source}: the typical part`, ...side[one.side](), ` (${one.balance})`)));
  const go = length ? button(length === 1 ? "Go to the suspect of these two classes" : `Go through the ${length} suspects of these two classes`, () => {
    Object.assign(filter, { class: "", show: "all", pair: pairOf(between(pair)[0]) });
    look("suspects");
    settle();
  }) : make("p", { className: "vt-below", textContent: "No suspect is of these two classes." });
  put("#rv-pair", make("h2", {}, "Images of ", bold(pair.shown, "vt-for"), ", held against ", bold(pair.other, "vt-against")), go, make("div", { className: "rv-grid" }, ...grid));
  go.scrollIntoView({ block: "nearest" });
};

// -- events --------------------------------------------------------------------------------------------------------

const move = (step, hurried) => {
  const image = current === null ? (step < 0 ? beside(null, -1) : null) : beside(current, step);
  if (image !== null) show(image, hurried);
};
const zoom = picture => {
  put(".rv-zoom", make("img", { src: picture.src, alt: picture.alt }));
  $(".rv-zoom").showModal();
};
const KEYS = { k: () => decide("keep"), r: () => decide("relabel"), b: () => decide("both"), d: () => decide("drop"), s: () => decide("skip"), u: undo, z: undo, Backspace: undo };
document.addEventListener("keydown", e => {
  const tabs = all("[role=tab]");
  if (e.ctrlKey || e.metaKey || e.altKey || $(".rv-zoom").open) return;
  if (tabs.includes(e.target) && e.key.startsWith("Arrow")) {
    const other = tabs[1 - tabs.indexOf(e.target)];
    other.focus();
    look(other.dataset.view);
    return;
  }
  if (e.target.matches?.("input, select, textarea") || onPairs()) return;
  const key = e.key.length === 1 ? e.key.toLowerCase() : e.key, arrow = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (arrow) move(arrow, e.repeat);
  else if (key === "v") body.toggleAttribute("data-plain", true);
  else if (!(key in KEYS)) return;
  else if (!e.repeat) KEYS[key]();  // a key that is held down decides about one image
  e.preventDefault();
});
document.addEventListener("keyup", e => { if (e.key.toLowerCase() === "v") body.toggleAttribute("data-plain", false); });
addEventListener("blur", () => body.toggleAttribute("data-plain", false));
document.addEventListener("click", e => {
  const one = e.target.closest("button, tr[data-pair], [data-go], .rv-zoom");
  if (one?.dataset.verdict) decide(one.dataset.verdict);
  else if (one?.dataset.undo !== undefined) undo();
  else if (one?.dataset.move) move(Number(one.dataset.move));
  else if (one?.dataset.view) look(one.dataset.view);
  else if (one?.dataset.theme !== undefined) otherTheme();
  else if (one?.dataset.all !== undefined) everything();
  else if (one?.dataset.go) show(Number(one.dataset.go));
  else if (one?.matches(".rv-zoom")) one.close();
  else if (e.target.closest("tr[data-pair]")) showPair(Number(e.target.closest("tr").dataset.pair)).catch(error => alert(`The pair cannot be shown: ${error.message}`));
  else if (e.target.matches(".rv-glass img, .rv-strip img")) zoom(e.target);
});
document.addEventListener("change", e => {
  if (!(e.target.name in filter)) return;
  filter[e.target.name] = e.target.value;
  e.target.blur();  // the keys decide again
  settle();
});
document.addEventListener("submit", e => e.preventDefault());
addEventListener("beforeunload", e => { if (queue.length) e.preventDefault(); });
// What another tab decides is shown here, too.
const catchUp = () => refresh().catch(error => alert(`This page may be behind: ${error.message}`));
channel.addEventListener("message", catchUp);
addEventListener("focus", catchUp);

const arrive = async () => {
  const told = await ask("review");
  ({ suspects: all_, names, pairs } = told);
  all_.forEach((one, place) => places.set(one.image, place));
  options("class", "any class", one => [one.given, one.suggested].filter(index => index !== null), name);
  options("pair", "any pair", one => pairOf(one) ? [pairOf(one)] : [], value => value.split(" ").map(name).join(" / "));
  adopt(told);
  const words = new URLSearchParams(location.search), wanted = words.get("image"), view = words.get("view");
  for (const kind of Object.keys(filter)) filter[kind] = words.get(kind) ?? filter[kind];
  listPairs();
  const { about, notes } = told, told_ = `Model ${about.model}; data ${about.data}, ${about.images} images; maps by ${about.method}.`;
  $("#rv-about").append(...[told_, ...notes].map(textContent => make("p", { textContent })));
  choose();
  if (view === "pairs") look("pairs");
  if (wanted !== null && places.has(Number(wanted))) show(Number(wanted)); else settle();
};
arrive().catch(error => alert(`The review cannot be shown: ${error.message}`, button("Load the page", () => location.reload())));
