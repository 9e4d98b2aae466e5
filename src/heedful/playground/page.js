// What only a browser can do: read the selection, show a token's details, save and open files, keep the link.
// Text of users and models goes into the page as textContent, never as HTML.
window.heedful = (() => {
  const LARGEST_FILE = 900000; // bytes, as in exchange.py
  const TEXTS = ["hp-system", "hp-prompt"];
  const SHOWN_FROM = 0.0005;
  let last = { id: "hp-prompt", start: 0, end: 0 };
  let anchor = null;
  let pointer = ""; // where it was last
  let isStopped = false; // the answers that were asked for last

  const field = (id) => document.querySelector(`#${id} textarea`);
  const placeOf = (event) => `${event.screenX} ${event.screenY}`;
  const press = (id) => document.getElementById(id)?.click();

  // A line for the note, as render.py writes it; `text` is never a user's.
  const note = (text) => `<p class="hp-note" role="status">${text}</p>`;

  function remember() {
    const id = TEXTS.find((one) => field(one) === document.activeElement);
    if (id) last = { id, start: field(id).selectionStart, end: field(id).selectionEnd };
  }

  // Marking

  // The tags of the marked regions that [start, end) touches, as [from, to) in `text`.
  function tagsAround(text, start, end) {
    const found = [];
    for (const { 0: whole, 1: opening, index } of text.matchAll(/(<heed\b[^<>]*>)[\s\S]*?<\/heed>/gi)) {
      const stop = index + whole.length;
      if (index < end && stop > start) found.push([index, index + opening.length], [stop - "</heed>".length, stop]);
    }
    return found;
  }

  // As somebody who types does it, so that text and selection are there at once.
  function put(area, text, start, end) {
    area.value = text;
    area.dispatchEvent(new InputEvent("input", { bubbles: true }));
    area.focus();
    area.setSelectionRange(start, end);
    remember();
  }

  // What is selected stays selected: once more takes the mark off again, or puts it there again.
  function mark() {
    const area = field(last.id);
    const text = area.value;
    let { start, end } = last;
    while (start < end && /\s/.test(text[start])) start += 1;
    while (end > start && /\s/.test(text[end - 1])) end -= 1;
    if (start >= end || end > text.length)
      return note("Select some text first: what is selected is heeded. On marked text, the mark is taken off.");
    const tags = tagsAround(text, start, end);
    if (!tags.length) {
      const inside = `<heed>${text.slice(start, end)}</heed>`;
      put(area, text.slice(0, start) + inside + text.slice(end), start + "<heed>".length, end + "<heed>".length);
      return undefined;
    }
    const moved = (place) => tags.reduce((at, [from, to]) => at - Math.max(0, Math.min(place, to) - from), place);
    const bare = tags.reduceRight((left, [from, to]) => left.slice(0, from) + left.slice(to), text);
    put(area, bare, moved(start), moved(end));
    return undefined;
  }

  // Details of a token

  function cell(row, text, kind = "td") {
    const made = document.createElement(kind);
    made.textContent = text;
    row.appendChild(made);
    return made;
  }

  function chance(row, p) {
    const made = cell(row, p === null ? "–" : p < SHOWN_FROM ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
    made.style.setProperty("--p", p ?? 0);
    made.className = "hp-p";
  }

  function tip() {
    let box = document.getElementById("hp-tip");
    if (!box) {
      box = document.createElement("div");
      box.id = "hp-tip";
      box.setAttribute("role", "status");
      document.body.appendChild(box);
    }
    return box;
  }

  function details(data) {
    const box = tip();
    box.replaceChildren();
    const head = document.createElement("p");
    cell(head, data.text, "b");
    cell(head, ` ${data.words}`, "span");
    box.appendChild(head);
    if (!data.others.length) return;
    const table = document.createElement("table");
    const titles = table.createTHead().insertRow();
    for (const title of ["token", "raw", "steered"]) cell(titles, title, "th").scope = "col";
    const body = table.createTBody();
    data.others.forEach(([text, raw, steered], at) => {
      const row = body.insertRow();
      cell(row, at === data.taken ? `▸ ${text}` : text);
      chance(row, raw);
      chance(row, steered);
      if (at === data.taken) row.className = "hp-taken";
    });
    box.appendChild(table);
  }

  function show(token) {
    details(JSON.parse(token.dataset.token));
    anchor?.classList.remove("hp-at");
    anchor = token;
    token.classList.add("hp-at");
    tip().classList.add("hp-open");
    place();
  }

  function place() {
    if (!anchor) return;
    const box = tip();
    box.style.left = box.style.top = "0"; // where it is free to be as wide as it wants
    const lines = [...anchor.getClientRects()]; // a token may begin at the end of one line and go on in the next
    const at = lines.at(-1) ?? anchor.getBoundingClientRect();
    const first = lines[0] ?? at;
    const { width, height } = box.getBoundingClientRect();
    const below = at.bottom + 8 + height <= innerHeight;
    box.style.left = `${Math.max(6, Math.min(at.left, innerWidth - width - 6))}px`;
    box.style.top = `${below ? at.bottom + 6 : Math.max(6, first.top - height - 6)}px`;
  }

  function hide() {
    anchor?.classList.remove("hp-at");
    anchor = null;
    tip().classList.remove("hp-open");
  }

  function walk(area, key) {
    const tokens = [...area.querySelectorAll(".hp-t")];
    if (!tokens.length) return false;
    const now = tokens.indexOf(anchor);
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tokens.length - 1 }[key];
    if (next === undefined) return false;
    const token = tokens[Math.max(0, Math.min(next, tokens.length - 1))];
    token.scrollIntoView({ block: "nearest" });
    show(token);
    return true;
  }

  // Files and links

  function save(text) {
    if (!text) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "heedful-playground.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function readFile() {
    return new Promise((resolve) => {
      const input = document.createElement("input");
      input.type = "file";
      input.accept = ".json,application/json";
      input.addEventListener("cancel", () => resolve(""));
      input.addEventListener("change", async () => {
        const [file] = input.files;
        if (!file || file.size > LARGEST_FILE) {
          resolve(file ? `size:${file.size}` : "");
          return;
        }
        resolve((await file.text()) || " ");
      });
      input.click();
    });
  }

  const readLink = () => (location.hash.startsWith("#heed=") ? location.hash : "");

  async function setLink(text) {
    if (!text) return undefined;
    history.replaceState(null, "", text);
    try {
      await navigator.clipboard.writeText(location.href);
      return note("The link is copied; it is the address of this page, too.");
    } catch {
      return note("The link is the address of this page now; copy it from there.");
    }
  }

  function runIf(flag) {
    if (flag === "run") press("hp-run");
  }

  const ended = () => (isStopped ? note("Stopped.") : undefined);

  function stop() {
    isStopped = true;
    return ended();
  }

  // Listening

  document.addEventListener("selectionchange", remember);
  document.addEventListener("select", remember, true);
  addEventListener("hashchange", () => readLink() && press("hp-opened"));
  addEventListener("scroll", place, true);
  addEventListener("resize", place);
  document.addEventListener("pointerdown", remember, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#hp-run")) isStopped = false;
  }, true);
  document.addEventListener("mousemove", (event) => {
    pointer = placeOf(event);
  }, true);
  document.addEventListener("mouseover", (event) => {
    const hasMoved = placeOf(event) !== pointer;
    pointer = placeOf(event);
    // While somebody walks by keyboard, the page may move under a pointer that rests.
    if (!hasMoved && document.activeElement?.matches(".hp-answer")) return;
    const token = event.target.closest?.(".hp-answer .hp-t");
    if (token) show(token);
    else if (anchor && !event.target.closest?.("#hp-tip") && !anchor.parentElement?.matches(":focus")) hide();
  });
  document.addEventListener("click", (event) => {
    const token = event.target.closest?.(".hp-answer .hp-t");
    if (token) show(token);
  });
  document.addEventListener("focusin", (event) => {
    if (event.target.matches?.(".hp-answer")) walk(event.target, "Home");
    else if (anchor) hide();
  });
  document.addEventListener("focusout", (event) => event.target.matches?.(".hp-answer") && hide());
  document.addEventListener("keydown", (event) => {
    remember(); // the browser tells of a selection only later
    if (event.key === "Escape") hide();
    else if (event.altKey && event.code === "KeyM") press("hp-heed");
    else if ((event.ctrlKey || event.metaKey) && event.key === "Enter") press("hp-run");
    else if (!(event.target.matches?.(".hp-answer") && walk(event.target, event.key))) return;
    event.preventDefault();
  }, true);

  return { mark, stop, ended, save, readFile, readLink, setLink, runIf };
})();
