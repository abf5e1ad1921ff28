// Elements, questions to the server, and what is kept of the answers: for the review page.
const make = (tag, given = {}, ...children) => {
  const { data = {}, ...rest } = given, one = Object.assign(document.createElement(tag), rest);
  Object.assign(one.dataset, data);
  one.append(...children.filter(child => child !== null));
  return one;
};
const put = (where, ...children) => $(where).replaceChildren(...children);
const button = (words, act) => {
  const one = make("button", { type: "button", className: "vt-button", textContent: words });
  one.addEventListener("click", act);
  return one;
};

const ask = async (where, given) => {
  const sent = given && { method: "POST", body: JSON.stringify(given), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(where, sent).catch(() => { throw new Error("the server does not answer: is it still running?"); });
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  throw Object.assign(new Error(told.detail || `the server answers with an error (${answer.status})`), { status: answer.status, state: told.state });
};
const pictured = async address => {
  if (!address) return null;
  const one = make("img", { src: address, alt: "", decoding: "sync", draggable: false });
  await one.decode().catch(() => {});
  return one;
};

// What is asked for once, and kept while it is among the last that were needed.
const shelf = (held, fetched) => {
  const kept = new Map();
  return key => {
    const found = kept.get(key) ?? { promise: fetched(key) };
    kept.delete(key);
    kept.set(key, found);
    found.promise.then(value => { found.value = value; }, () => kept.delete(key));
    for (const old of kept.keys()) if (kept.size > held) kept.delete(old);
    return found;
  };
};

