// What the page does by itself, without asking the server. No library, nothing fetched.
(() => {
  const page = { pending: null, limit: 0 };
  window.vitrail = page;
  const root = document.documentElement;

  page.take = () => { const given = page.pending; page.pending = null; return given; };
  page.busy = on => { if (on) document.body.dataset.busy = ""; else { delete document.body.dataset.busy; page.reading(""); } };
  const ask = (trigger, event, given) => { page.pending = given; page.busy(true); trigger(event); };

  // What is refused, or does not arrive, is no longer waited for; Gradio says why.
  const fetching = window.fetch;
  window.fetch = async (...given) => {
    try {
      const answer = await fetching(...given);
      if (!answer.ok) { page.busy(false); page.going = null; }
      return answer;
    } catch (error) { page.busy(false); page.going = null; throw error; }
  };

  // Paper or dark: as the system is, until somebody says otherwise.
  const theme = dark => document.body.classList.toggle("dark", dark);
  const wished = () => { try { return localStorage.getItem("vitrail-theme"); } catch { return null; } };
  page.head = element => {
    if (wished()) theme(wished() === "dark");
    element.addEventListener("click", e => {
      if (!e.target.closest("[data-theme]")) return;
      theme(!document.body.classList.contains("dark"));
      try { localStorage.setItem("vitrail-theme", document.body.classList.contains("dark") ? "dark" : "light"); } catch { /* not kept */ }
    });
  };

  // While a picture is on its way, the old maps are grey and it is said what is read.
  page.reading = name => {
    let box = document.querySelector(".vt-reading");
    if (!name) { box?.remove(); delete document.body.dataset.reading; return; }
    if (!box) {
      box = document.createElement("div");
      box.className = "vt-reading";
      box.setAttribute("role", "status");
      document.getElementById("vt-views").before(box);
    }
    box.textContent = `Reading ${name} …`;
    document.body.dataset.reading = "";
  };

  // A long drawing: its button to stop is there while it is under way.
  const flag = view => "drawing" + view[0].toUpperCase() + view.slice(1);
  page.begin = view => {
    document.body.dataset[flag(view)] = "";
    if (document.querySelector(`#vt-draw-${view}`) === document.activeElement) page.focused = null;
  };
  page.ended = view => { delete document.body.dataset[flag(view)]; };

  // The address always shows the link to what is seen, and each question is an entry of the history.
  page.link = (query, replace) => {
    page.busy(false);
    if (!query) return;
    if (location.search !== "?" + query) history[replace ? "replaceState" : "pushState"](null, "", "?" + query);
    page.shown(query);
  };
  page.shown = query => {
    page.busy(false);
    const example = new URLSearchParams(query).get("example");
    document.querySelectorAll("[data-example]").forEach(
      one => one.setAttribute("aria-pressed", String(one.dataset.example === example)));
  };
  // Back turns the tabs, too, and that is no question of the visitor's.
  document.addEventListener("click", e => { if (e.target.closest(".tab-wrapper button")) page.turning = true; }, true);
  page.turned = query => {
    if (page.turning) page.link(query); else page.shown(query);
    page.turning = false;
  };
  page.history = trigger => {
    page.restore = () => { page.going = { to: location.search }; ask(trigger, "back", location.search); };
    window.addEventListener("popstate", () => { if (!page.going) page.restore(); });  // else its answer looks again
  };

  // A link to a view that takes long has it drawn, as soon as its button is there.
  page.arrived = query => {
    if (page.going && page.going.to !== location.search) { page.restore(); return; }  // gone further meanwhile
    if (page.going) page.shown(query); else page.link(query, true);  // after Back the address is right already
    page.going = null;
    const view = new URLSearchParams(query).get("view");
    let tries = 0;
    const look = setInterval(() => {
      const button = document.getElementById("vt-draw-" + view);
      if (button && document.querySelector(`#vt-view-${view} .vt-wait`)) button.click();
      if (button || ++tries > 40 || !document.getElementById("vt-tab-" + view)) clearInterval(look);
    }, 250);
  };

  page.say = text => {
    let box = document.querySelector(".vt-said");
    if (!box) {
      box = document.createElement("div");
      box.className = "vt-said";
      box.setAttribute("role", "status");
      document.body.append(box);
    }
    box.textContent = text;
    box.classList.add("vt-on");
    clearTimeout(page.timer);
    page.timer = setTimeout(() => box.classList.remove("vt-on"), 2200);
  };

  page.copy = async (text, what) => {
    try { await navigator.clipboard.writeText(text); }
    catch {  // outside of https and loopback there is no clipboard to write to
      const area = document.createElement("textarea");
      area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    page.say(what + " copied");
  };

  page.save = parcel => {
    page.busy(false);
    if (!parcel) return;
    const { name, type, data, problem } = typeof parcel === "string" ? JSON.parse(parcel) : parcel;
    if (problem) { page.say(problem); return; }
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([bytes], { type }));
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
    page.say(name + " saved");
  };

  const read = file => new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result); reader.onerror = failed;
    reader.readAsDataURL(file);
  });

  // A file field, a place to drop on, the clipboard: each ends in trigger(event).
  page.picker = (element, trigger, event) => {
    const give = async file => {
      if (!file) return;
      page.busy(true);
      if (event === "upload") page.reading(file.name);
      const most = Number(element.querySelector("[data-limit]")?.dataset.limit || 0);
      const large = most && file.size > most;
      ask(trigger, event, large ? { name: file.name, content: "", size: file.size } : { name: file.name, content: await read(file) });
    };
    element.addEventListener("change", e => {
      if (e.target.type === "file") { give(e.target.files[0]); e.target.value = ""; }
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      element.addEventListener(kind, e => {
        const place = e.target.closest(".vt-drop");
        if (!place) return;
        e.preventDefault();
        place.classList.toggle("vt-over", kind === "dragover");
        if (kind === "drop") give(e.dataTransfer.files[0]);
      });
    }
    if (event === "upload") {
      document.addEventListener("paste", e => {
        const file = [...(e.clipboardData?.files || [])].find(one => one.type.startsWith("image/"));
        if (file) give(file);
      });
    }
  };
  page.examples = (element, trigger) => element.addEventListener("click", e => {
    const example = e.target.closest("[data-example]");
    if (!example) return;
    ask(trigger, "example", { example: example.dataset.example });
    page.reading(example.title);
  });

  // What is focused before a part of the page is drawn anew is focused after it.
  const key = one => {
    for (const name of ["class", "pick", "example", "copy", "download"]) {
      if (one.dataset[name] !== undefined) return `[data-${name}="${one.dataset[name]}"]`;
    }
    return one.id ? `#${CSS.escape(one.id)}` : one.matches(".vt-glass[tabindex]") ? ".vt-glass[tabindex]" : null;
  };
  document.addEventListener("focusin", e => { page.focused = key(e.target); });
  page.drawn = element => {
    if (document.activeElement === document.body && page.focused) element.querySelector(page.focused)?.focus({ preventScroll: true });
    if (element.querySelector("[data-opacity]")) opacity(page.opacity ?? 1);
    mark(element);
    const slider = element.querySelector(".vt-player input");
    if (slider) show(element, +slider.value);
  };

  // The classes: buttons, and two fields that find any class; exact names first, then beginnings, then the rest.
  const LISTED = 60;
  const plain = text => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");
  page.rank = (names, typed) => {
    const wanted = plain(typed.trim());
    const found = [];
    names.forEach((name, index) => {
      const text = plain(name), at = text.indexOf(wanted);
      if (at < 0 && String(index) !== wanted) return;
      const rank = text === wanted ? 0 : String(index) === wanted ? 1 : at === 0 ? 2 : /\W/.test(text[at - 1] || "x") ? 3 : 4;
      found.push({ name, index, rank });
    });
    return found.sort((one, other) => one.rank - other.rank || one.index - other.index);
  };
  page.classes = (element, trigger) => {
    const names = () => JSON.parse(document.getElementById("vt-names")?.dataset.names || "[]");
    const parts = field => {
      const combo = field.closest(".vt-combo");
      return { combo, list: combo.querySelector("[role=listbox]"), name: combo.dataset.combo };
    };
    const close = (field, restore) => {
      const { list } = parts(field);
      list.hidden = true;
      field.setAttribute("aria-expanded", "false");
      field.removeAttribute("aria-activedescendant");
      if (restore) field.value = field.defaultValue;
    };
    const point = (field, at) => {
      const { list } = parts(field), options = [...list.children].filter(one => one.matches("[role=option]"));
      options.forEach((one, number) => one.setAttribute("aria-selected", String(number === at)));
      const one = options[at];
      if (one) { field.setAttribute("aria-activedescendant", one.id); one.scrollIntoView({ block: "nearest" }); }
    };
    const pointed = field => [...parts(field).list.querySelectorAll("[role=option]")]
      .findIndex(one => one.getAttribute("aria-selected") === "true");
    const open = (field, typed) => {
      const { combo, list, name } = parts(field), found = page.rank(names(), typed);
      const option = (text, index, number) => {
        const one = document.createElement("li");
        one.id = `vt-option-${name}-${number}`;
        one.setAttribute("role", "option");
        one.dataset.index = index;
        one.textContent = text;
        return one;
      };
      const options = found.slice(0, LISTED).map((one, number) => option(one.name, one.index, number + 1));
      if (combo.dataset.empty && !typed.trim()) options.unshift(option(combo.dataset.empty, "", 0));
      if (found.length > LISTED || !options.length) {
        const rest = document.createElement("li");
        rest.className = "vt-rest";
        rest.textContent = found.length ? `and ${found.length - LISTED} more: go on typing` : "no class has this in its name";
        options.push(rest);
      }
      list.replaceChildren(...options);
      list.hidden = false;
      field.setAttribute("aria-expanded", "true");
      point(field, typed.trim() ? 0 : -1);
    };
    const choose = (field, index) => {
      close(field, false);
      ask(trigger, "named", { [parts(field).name]: index === "" ? null : Number(index) });
    };
    element.addEventListener("click", e => {
      const button = e.target.closest("[data-class]"), field = e.target.closest("[role=combobox]");
      if (button) ask(trigger, "class", button.dataset.class === "swap" ? "swap" : Number(button.dataset.class));
      else if (field && field.getAttribute("aria-expanded") === "false") { field.select(); open(field, ""); }
    });
    element.addEventListener("mousedown", e => {  // before the field loses the focus
      const option = e.target.closest("[role=option]");
      if (e.target.closest("[role=listbox]")) e.preventDefault();
      if (option) choose(option.closest(".vt-combo").querySelector("input"), option.dataset.index);
    });
    element.addEventListener("input", e => { if (e.target.matches("[role=combobox]")) open(e.target, e.target.value); });
    element.addEventListener("focusout", e => { if (e.target.matches("[role=combobox]")) close(e.target, true); });
    element.addEventListener("keydown", e => {
      const field = e.target;
      if (!field.matches("[role=combobox]")) return;
      const shut = field.getAttribute("aria-expanded") === "false";
      const { list } = parts(field), options = list.querySelectorAll("[role=option]");
      if (e.key === "ArrowDown" || e.key === "ArrowUp") {
        e.preventDefault();
        if (shut) { open(field, ""); return; }
        const step = e.key === "ArrowDown" ? 1 : -1;
        point(field, (Math.max(pointed(field) + step, step < 0 ? -1 : 0) + options.length) % options.length);
      } else if (e.key === "Enter" && !shut && options[pointed(field)]) {
        e.preventDefault();
        choose(field, options[pointed(field)].dataset.index);
      } else if (e.key === "Escape" && !shut) { e.preventDefault(); close(field, true); }
    });
  };

  // Pointing at patches, by mouse, finger or keyboard.
  const cell = (glass, kind) => {
    let box = glass.querySelector("." + kind);
    if (!box) {
      box = document.createElement("div");
      box.className = "vt-cell " + kind;
      glass.append(box);
    }
    return box;
  };
  const place = (glass, kind, row, col) => {
    const { rows, cols } = glass.dataset, box = cell(glass, kind);
    Object.assign(box.style, {
      left: 100 * col / cols + "%", top: 100 * row / rows + "%", width: 100 / cols + "%", height: 100 / rows + "%",
    });
    return box;
  };
  const tell = (glass, row, col) => {
    let tip = glass.querySelector(".vt-tip");
    if (!tip) {
      tip = document.createElement("div");
      tip.className = "vt-tip";
      tip.setAttribute("role", "status");
      glass.append(tip);
    }
    const score = glass.dataset.scores.split(" ")[row * glass.dataset.cols + col];
    tip.textContent = `row ${row + 1}, column ${col + 1}: ${score}`;
  };
  const under = (glass, e) => {
    const box = glass.getBoundingClientRect(), edge = glass.clientLeft;
    const part = (at, start, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((at - start - edge) / (length - 2 * edge) * count)));
    return [part(e.clientY, box.top, box.height, +glass.dataset.rows), part(e.clientX, box.left, box.width, +glass.dataset.cols)];
  };
  const mark = element => element.querySelectorAll(".vt-glass[data-row]").forEach(
    glass => place(glass, "vt-kept", +glass.dataset.row, +glass.dataset.col));
  const pointing = (element, trigger) => {
    const point = (row, col) => ask(trigger, "patch", { row, col });
    const live = e => { const glass = e.target.closest(".vt-glass[data-rows]"); return glass && !glass.dataset.still ? glass : null; };
    element.addEventListener("mousemove", e => {
      const glass = live(e);
      if (!glass) return;
      const [row, col] = under(glass, e);
      place(glass, "vt-at", row, col); tell(glass, row, col);
    });
    element.addEventListener("mouseout", e => {
      const glass = live(e);
      if (glass && !glass.contains(e.relatedTarget)) glass.querySelectorAll(".vt-at, .vt-tip").forEach(one => one.remove());
    });
    element.addEventListener("click", e => {
      const glass = live(e);
      if (glass) point(...under(glass, e)); else if (e.target.closest("[data-drop]")) point(null, null);
    });
    element.addEventListener("keydown", e => {
      const glass = live(e);
      if (!glass || e.target !== glass) return;
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const rows = +glass.dataset.rows, cols = +glass.dataset.cols;
      const start = glass.dataset.row === undefined ? `${rows >> 1} ${cols >> 1}` : `${glass.dataset.row} ${glass.dataset.col}`;
      let [row, col] = (glass.dataset.at || start).split(" ").map(Number);
      if (e.key in moves) {
        row = Math.min(rows - 1, Math.max(0, row + moves[e.key][0]));
        col = Math.min(cols - 1, Math.max(0, col + moves[e.key][1]));
        glass.dataset.at = `${row} ${col}`;
        place(glass, "vt-at", row, col); tell(glass, row, col);
        e.preventDefault();
      } else if (e.key === "Enter" || e.key === " ") { point(row, col); e.preventDefault(); }
    });
    // Escape lets a chosen patch go, wherever the focus is, unless a field has a use for it.
    document.addEventListener("keydown", e => {
      const chosen = element.querySelector(".vt-glass[data-row]");
      if (e.key === "Escape" && !e.defaultPrevented && chosen?.checkVisibility()) point(null, null);
    });
  };

  // Opacity: one for all views.
  const opacity = value => {
    page.opacity = value;
    root.style.setProperty("--vt-opacity", value);
    document.querySelectorAll("[data-opacity]").forEach(one => {
      one.value = value;
      one.parentNode.querySelector("output").textContent = Math.round(100 * value) + " %";
    });
  };

  // Films: a slider that shows one of several frames, and a button that plays them.
  const show = (element, number) => {
    element.querySelectorAll(".vt-frame").forEach(one => {
      if (+one.dataset.frame === number) one.removeAttribute("hidden"); else one.setAttribute("hidden", "");
    });
    const slider = element.querySelector(".vt-player input");
    const words = slider?.dataset.words?.split("|") || [];
    element.querySelectorAll(".vt-player output").forEach(one => { one.textContent = words[number] ?? number; });
    slider?.setAttribute("aria-valuetext", words[number] ?? number);
  };
  const play = element => {
    const slider = element.querySelector(".vt-player input"), last = +slider.max;
    let at = +slider.value >= last ? 0 : +slider.value;
    clearInterval(page.playing);
    page.playing = setInterval(() => {
      const now = element.querySelector(".vt-player input");
      if (!now || at > last) { clearInterval(page.playing); return; }
      now.value = at; show(element, at); at += 1;
    }, 450);
  };

  page.view = (element, trigger) => {
    pointing(element, trigger);
    element.addEventListener("input", e => {
      if (e.target.matches("[data-opacity]")) opacity(+e.target.value);
      else if (e.target.matches(".vt-player input")) { clearInterval(page.playing); show(element, +e.target.value); }
    });
    element.addEventListener("click", e => {
      const head = e.target.closest("[data-pick]"), save = e.target.closest("[data-save]");
      if (head) ask(trigger, "pick", head.dataset.pick.split(" ").map(Number));
      else if (save) ask(trigger, "save", save.dataset.save);
      else if (e.target.closest(".vt-player button")) play(element);
    });
    page.drawn(element);
  };

  page.taking = (element, trigger) => element.addEventListener("click", e => {
    const button = e.target.closest("button");
    if (!button) return;
    if (button.dataset.copy === "link") page.copy(location.href, "Link");
    else if (button.dataset.copy) page.copy(element.querySelector(`pre[data-text=${button.dataset.copy}]`).textContent, button.dataset.copy === "python" ? "Python" : "Command");
    else if (button.dataset.download) ask(trigger, "download", button.dataset.download);
  });
})();
