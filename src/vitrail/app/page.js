// What the page does by itself, without asking the server. No library, nothing fetched.
(() => {
  const page = { pending: null, limit: 0 };
  window.vitrail = page;
  const root = document.documentElement;

  page.take = () => { const given = page.pending; page.pending = null; return given; };
  page.opacity = value => root.style.setProperty("--vt-opacity", value);
  page.busy = on => { if (on) document.body.dataset.busy = ""; else delete document.body.dataset.busy; };

  // What is refused, or does not arrive, is no longer waited for; Gradio says why.
  const fetching = window.fetch;
  window.fetch = async (...given) => {
    try {
      const answer = await fetching(...given);
      if (!answer.ok) page.busy(false);
      return answer;
    } catch (error) { page.busy(false); throw error; }
  };

  // The address always shows the link to what is seen.
  page.link = query => {
    page.busy(false);
    if (!query) return;
    history.replaceState(null, "", "?" + query);
    const example = new URLSearchParams(query).get("example");
    document.querySelectorAll("[data-example]").forEach(
      one => one.setAttribute("aria-pressed", String(one.dataset.example === example)));
  };

  // A link to a view that takes long has it drawn, as soon as its button is there.
  page.arrived = query => {
    page.link(query);
    const view = new URLSearchParams(query).get("view");
    let tries = 0;
    const look = setInterval(() => {
      const button = document.getElementById("vt-draw-" + view);
      if (button) button.click();
      if (button || ++tries > 40 || !document.getElementById("vt-tab-" + view)) clearInterval(look);
    }, 250);
  };
  page.set = (name, value) => {
    const query = new URLSearchParams(location.search);
    query.set(name, value);
    history.replaceState(null, "", "?" + query);
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
      const most = Number(element.querySelector("[data-limit]")?.dataset.limit || 0);
      if (most && file.size > most) {
        page.pending = { name: file.name, content: "", size: file.size };
      } else {
        page.pending = { name: file.name, content: await read(file) };
      }
      page.busy(true);
      trigger(event);
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
    element.addEventListener("click", e => {
      const example = e.target.closest("[data-example]");
      if (!example) return;
      page.pending = { example: example.dataset.example };
      page.busy(true);
      trigger("example");
    });
    if (event === "upload") {
      document.addEventListener("paste", e => {
        const file = [...(e.clipboardData?.files || [])].find(one => one.type.startsWith("image/"));
        if (file) give(file);
      });
    }
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
  page.mark = element => element.querySelectorAll(".vt-glass[data-row]").forEach(
    glass => place(glass, "vt-kept", +glass.dataset.row, +glass.dataset.col));
  page.pointing = (element, trigger) => {
    const ask = (row, col) => { page.pending = { row, col }; page.busy(true); trigger("patch"); };
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
    element.addEventListener("click", e => { const glass = live(e); if (glass) ask(...under(glass, e)); });
    element.addEventListener("keydown", e => {
      const glass = live(e);
      if (!glass || e.target !== glass) return;
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const rows = +glass.dataset.rows, cols = +glass.dataset.cols;
      let [row, col] = (glass.dataset.at || `${rows >> 1} ${cols >> 1}`).split(" ").map(Number);
      if (e.key in moves) {
        row = Math.min(rows - 1, Math.max(0, row + moves[e.key][0]));
        col = Math.min(cols - 1, Math.max(0, col + moves[e.key][1]));
        glass.dataset.at = `${row} ${col}`;
        place(glass, "vt-at", row, col); tell(glass, row, col);
        e.preventDefault();
      } else if (e.key === "Enter" || e.key === " ") { ask(row, col); e.preventDefault(); }
    });
    page.mark(element);
  };

  page.buttons = (element, trigger, name, read) => element.addEventListener("click", e => {
    const button = e.target.closest(`[data-${name}]`);
    if (!button) return;
    page.pending = read(button.dataset);
    page.busy(true);
    trigger(name);
  });

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
  page.films = element => {
    element.addEventListener("input", e => {
      if (!e.target.matches(".vt-player input")) return;
      show(element, +e.target.value);
      if (e.target.dataset.name) page.set(e.target.dataset.name, e.target.value);
    });
    element.addEventListener("click", e => {
      if (!e.target.matches(".vt-player button")) return;
      const slider = element.querySelector(".vt-player input"), last = +slider.max;
      let at = +slider.value >= last ? 0 : +slider.value;
      clearInterval(page.playing);
      page.playing = setInterval(() => {
        const now = element.querySelector(".vt-player input");
        if (!now || at > last) { clearInterval(page.playing); return; }
        now.value = at; show(element, at); at += 1;
      }, 450);
    });
    page.film(element);
  };
  page.film = element => {
    const slider = element.querySelector(".vt-player input");
    if (slider) show(element, +slider.value);
  };

  page.taking = (element, trigger) => element.addEventListener("click", e => {
    const button = e.target.closest("button");
    if (!button) return;
    if (button.dataset.copy === "link") page.copy(location.href, "Link");
    else if (button.dataset.copy) page.copy(element.querySelector(`pre[data-text=${button.dataset.copy}]`).textContent, button.textContent.replace("Copy as ", ""));
    else if (button.dataset.download) { page.pending = button.dataset.download; page.busy(true); trigger("download"); }
  });
})();
