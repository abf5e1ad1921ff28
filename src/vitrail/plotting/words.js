// The words of an explained answer: pointed at, tapped or focused, each shows its map; two are held against each other.
// For the page of `vitrail vlm` and the Words view of `vitrail app`. `data` is what `answer_data` in
// vitrail.plotting.generation gives, and `tell` takes what `answer_news` does. Whatever comes in them becomes text.
function showWords(root, data) {
  const HINT = "Point at a word or tap it to see what made the model write it; click two to see one against the other.";
  const BOTH = "Red: more for the first word; blue: more for the second (each map scaled by its largest score). Escape, or a click on them again, clears.";
  root.innerHTML = `<div class="words"><p class="answer" role="group" aria-label="answer"></p><p class="hint"></p>
    <div class="parts"><div class="pictures"></div><div><p class="question" aria-live="polite"></p>
    <h3>Share of the relevance, regardless of sign</h3><div class="shares"></div>
    <h3>Prompt and earlier answer<span class="most"></span></h3><p class="tokens"></p>
    <h3>Scores of the image</h3><div class="glass"></div><div class="ends"><span></span><span></span></div>
    <div class="notes"></div></div></div></div>`;
  const box = root.firstElementChild;
  const at = (name) => box.querySelector("." + name);
  const make = (name, text, more = {}) => Object.assign(document.createElement(name), { textContent: text }, more);
  const steps = (data.colours.length - 1) / 2, shade = 0.5;
  const colour = (score) => data.colours[Math.round(Math.max(-1, Math.min(1, score)) * steps) + steps];
  const css = (score) => `rgb(${colour(score).join()})`;
  const largest = (scores) => scores.reduce((most, one) => Math.max(most, Math.abs(one)), 0);
  const number = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toPrecision(3);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // What is shown: one word, or the first of two less the second, each scaled by the largest score of its own.
  function view(first, second) {
    const one = data.words[first];
    if (second === null) return { ...one, question: one.question.split(" against ", 2), shares: [one.grounding] };
    const other = data.words[second];
    const less = (a, b) => {
      const [left, right] = [largest(a) || 1, largest(b) || 1];
      return Array.from({ length: Math.max(a.length, b.length) }, (_, i) => (a[i] ?? 0) / left - (b[i] ?? 0) / right);
    };
    const both = (lists, others) => {
      const joined = less(lists.flat(), others.flat());
      return lists.map((list) => joined.splice(0, list.length));
    };
    const text = less(one.text, other.text);
    return { question: [one.word, other.word], maps: both(one.maps, other.maps), text, shares: [one.grounding, other.grounding] };
  }

  const canvases = data.pictures.map((picture, number) => {
    const figure = make("figure", "");
    const canvas = document.createElement("canvas");
    const [rows, cols] = data.grids[number];
    const [height, width] = picture ? picture.size : [rows * 16, cols * 16];
    const times = Math.max(1, Math.ceil(336 / Math.min(height, width)));
    [canvas.height, canvas.width] = [height * times, width * times];
    canvas.setAttribute("role", "img");
    figure.append(canvas);
    if (data.pictures.length > 1) figure.append(make("figcaption", `image ${number + 1}`));
    at("pictures").append(figure);
    return { canvas, rows, cols, grey: null, picture };
  });

  // Bilinear between the centres of the cells, corners not aligned, as in all figures.
  function draw(part, scores, limit) {
    const { canvas, rows, cols, grey } = part;
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    const image = context.createImageData(width, height);
    const place = (pixel, length, cells) => {
      const where = Math.max(0, Math.min(cells - 1, ((pixel + 0.5) * cells) / length - 0.5));
      const low = Math.min(Math.floor(where), Math.max(0, cells - 2));
      return [low, Math.min(low + 1, cells - 1), where - low];
    };
    const across = Array.from({ length: width }, (_, x) => place(x, width, cols));
    for (let y = 0, out = 0; y < height; y++) {
      const [top, bottom, down] = place(y, height, rows);
      for (let x = 0; x < width; x++, out += 4) {
        const [left, right, along] = across[x];
        const mix = (row) => scores[row * cols + left] * (1 - along) + scores[row * cols + right] * along;
        const score = limit ? (mix(top) * (1 - down) + mix(bottom) * down) / limit : 0;
        const light = grey ? shade + (1 - shade) * grey[y * width + x] : 1;
        const [red, green, blue] = colour(score);
        image.data[out] = red * light;
        image.data[out + 1] = green * light;
        image.data[out + 2] = blue * light;
        image.data[out + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
  }

  let pinned = [], pointed = null;
  const buttons = [];
  function addButton(number) {
    const word = data.words[number];
    const button = make("button", word.word, { type: "button", title: percent(word.probability) });
    button.dataset.word = number;
    button.setAttribute("aria-pressed", "false");
    const point = (where) => () => { pointed = where; update(); };
    button.addEventListener("mouseenter", point(number));
    button.addEventListener("mouseleave", point(null));
    button.addEventListener("focus", point(number));
    button.addEventListener("blur", point(null));
    button.addEventListener("click", () => {
      pinned = pinned.includes(number) ? pinned.filter((one) => one !== number) : [...pinned.slice(-1), number];
      pointed = null;
      update();
    });
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) buttons[number + step]?.focus();
    });
    buttons.push(button);
  }

  // The pieces of the answer, of which those that stay keep their elements, and with them the focus.
  let pieces = [];
  function write(keep) {
    const stays = (piece, i) => piece.word === data.answer[i]?.word && piece.text === data.answer[i].text && (piece.word ?? -1) < keep;
    const end = pieces.findIndex((piece, i) => !stays(piece, i));
    for (const piece of pieces.splice(end < 0 ? pieces.length : end)) for (const node of piece.nodes) node.remove();
    buttons.splice(keep);
    for (let number = keep; number < data.words.length; number++) addButton(number);
    for (const { word, text } of data.answer.slice(pieces.length)) {
      const nodes = word === null ? [make("i", text)] : [new Text(text), buttons[word]];
      at("answer").append(...nodes);
      pieces.push({ word, text, nodes });
    }
    [pinned, pointed] = [pinned.filter((one) => one < buttons.length), pointed < buttons.length ? pointed : null];
  }

  function update() {
    if (!data.words.length) return;
    const pair = pinned.length === 2 && pointed === null;
    const [first, second] = pair ? pinned : [pointed ?? pinned.at(-1) ?? data.start, null];
    buttons.forEach((button, number) => {
      button.classList.toggle("shown", !pair && number === first);
      button.classList.toggle("second", pinned[1] === number);
      button.setAttribute("aria-pressed", String(pinned.includes(number)));
    });
    const found = view(first, second);
    const [own, other] = found.question;
    at("question").replaceChildren(make("span", own, { className: "first" }));
    if (other !== undefined) at("question").append(" against ", make("span", other, { className: "second" }));
    at("hint").textContent = pair ? BOTH : HINT;
    const limit = largest(found.maps.flat());
    canvases.forEach((part, number) => {
      draw(part, found.maps[number], limit);
      part.canvas.setAttribute("aria-label", `map of ${own}${other === undefined ? "" : ` against ${other}`}`);
    });
    const low = Math.min(0, ...found.maps.flat()), high = Math.max(0, ...found.maps.flat());
    const ends = Array.from({ length: 17 }, (_, i) => css(limit ? (low + ((high - low) * i) / 16) / limit : 0));
    at("glass").style.background = `linear-gradient(to right, ${ends})`;
    const [left, right] = at("ends").children;
    left.textContent = limit ? number(low) + (low < 0 ? " against" : "") : "no signal";
    right.textContent = limit ? (high > 0 ? "for " : "") + number(high) : "";
    at("shares").replaceChildren(...found.shares.flatMap((shares, which) => {
      const bar = make("div", "", { className: "bar" });
      const key = make("ul", "", { className: "key" });
      if (found.shares.length > 1) key.append(make("li", found.question[which], { className: which ? "second" : "first" }));
      for (const [i, name] of ["image", "prompt", "earlier answer"].entries()) {
        const part = make("b", "");
        part.style.width = `${100 * shares[i]}%`;
        bar.append(part);
        const mark = make("i", "");
        mark.style.background = `var(--${["image", "prompt", "answer"][i]})`;
        const item = make("li", `${name} ${percent(shares[i])}`);
        item.prepend(mark);
        key.append(item);
      }
      return [bar, key];
    }));
    const most = largest(found.text);
    at("most").textContent = most && !pair ? `, at the darkest ${number(found.text.find((one) => Math.abs(one) === most))}` : "";
    at("tokens").replaceChildren(...data.tokens.filter((token) => token.at < found.text.length).map((token) => {
      if (token.at < 0) return make("span", token.text, { className: "gap" });
      const share = most ? found.text[token.at] / most : 0;
      const span = make("span", token.text, { title: number(found.text[token.at]) });
      if (Math.abs(share) >= 0.04) {
        span.style.background = css(share);
        span.style.color = Math.abs(share) < 0.8 ? "#222" : "#fff";
      }
      return span;
    }));
    at("notes").replaceChildren(...[data.by, ...data.notes].map((note) => make("p", note, { className: "note" })));
  }

  // Words behind the first `keep` come, or come anew; the one that is shown by itself, and the notes, may be others.
  function tell(news) {
    Object.assign(data, news, { words: [...data.words.slice(0, news.keep), ...news.words] });
    write(news.keep);
    update();
  }

  document.addEventListener("keydown", function clear(event) {
    if (!box.isConnected) document.removeEventListener("keydown", clear);
    else if (event.key === "Escape" && pinned.length) { pinned = []; update(); }
  });
  write(0);
  update();
  const ready = Promise.all(canvases.map(async (part) => {
    if (!part.picture) return;
    const image = new Image();
    image.src = part.picture.address;
    await image.decode();
    const { width, height } = part.canvas;
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    [context.canvas.width, context.canvas.height] = [width, height];
    context.drawImage(image, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height).data;
    part.grey = Float32Array.from({ length: width * height }, (_, i) =>
      (0.2126 * pixels[4 * i] + 0.7152 * pixels[4 * i + 1] + 0.0722 * pixels[4 * i + 2]) / 255);
  })).then(update);
  return { tell, ready };
}
