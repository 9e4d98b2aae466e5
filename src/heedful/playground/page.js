// What only a browser can do: read the selection, show a token's details, save and open files, keep the link.
// Text of users and models goes into the page as textContent, never as HTML.
window.heedful = (() => {
  const LARGEST_FILE = 900000; // bytes, as in exchange.py
  const TEXTS = ["hp-system", "hp-prompt"];
  const SHOWN_FROM = 0.0005;
  let last = { id: "hp-prompt", start: 0, end: 0 };
  let anchor = null;

  const field = (id) => document.querySelector(`#${id} textarea`);
  const press = (id) => document.getElementById(id)?.click();

  // After what is on its way from the server, which would overwrite it.
  function say(text) {
    setTimeout(() => {
      const note = document.querySelector("#hp-note .hp-note");
      if (note) note.textContent = text;
    }, 300);
  }

  function remember() {
    const id = TEXTS.find((one) => field(one) === document.activeElement);
    if (id) last = { id, start: field(id).selectionStart, end: field(id).selectionEnd };
  }

  // Marking

  function unmarked(text, start, end) {
    const region = /<heed\b[^<>]*>([\s\S]*?)<\/heed>/gi;
    let touched = false;
    const result = text.replace(region, (whole, inside, at) => {
      if (at >= end || at + whole.length <= start) return whole;
      touched = true;
      return inside;
    });
    return touched ? result : null;
  }

  // Once the text is there; a person who has gone on to something else by then is left there.
  function select(id, text, start, end, framesLeft = 120) {
    const area = field(id);
    if (area?.value !== text) {
      if (framesLeft) requestAnimationFrame(() => select(id, text, start, end, framesLeft - 1));
      return;
    }
    const at = document.activeElement;
    if (at !== area && at !== document.body && at?.id !== "hp-heed") return;
    area.focus();
    area.setSelectionRange(start, end);
    remember();
  }

  function mark(texts) {
    const at = TEXTS.indexOf(last.id);
    const text = texts[at] ?? "";
    let { start, end } = last;
    while (start < end && /\s/.test(text[start])) start += 1;
    while (end > start && /\s/.test(text[end - 1])) end -= 1;
    if (start === end) {
      say("Select some text first: what is selected is heeded. On marked text, the mark is taken off.");
      return texts;
    }
    const result = [...texts];
    const bare = unmarked(text, start, end);
    result[at] = bare ?? `${text.slice(0, start)}<heed>${text.slice(start, end)}</heed>${text.slice(end)}`;
    const length = end - start;
    const place = bare === null ? start + "<heed>".length : Math.max(0, start - "<heed>".length);
    select(last.id, result[at], place, place + length);
    return result;
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
          say(`The file has ${file?.size ?? 0} bytes; at most ${LARGEST_FILE} are read.`);
          resolve("");
          return;
        }
        resolve((await file.text()) || " ");
      });
      input.click();
    });
  }

  const readLink = () => (location.hash.startsWith("#heed=") ? location.hash : "");

  async function setLink(text) {
    if (!text) return;
    history.replaceState(null, "", text);
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link is copied; it is the address of this page, too.");
    } catch {
      say("The link is the address of this page now; copy it from there.");
    }
  }

  function runIf(flag) {
    if (flag === "run") setTimeout(() => press("hp-run"), 100);
  }

  // Listening

  document.addEventListener("selectionchange", remember);
  document.addEventListener("select", remember, true);
  addEventListener("hashchange", () => readLink() && press("hp-opened"));
  addEventListener("scroll", place, true);
  addEventListener("resize", place);
  document.addEventListener("mouseover", (event) => {
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
    if (event.key === "Escape") hide();
    else if (event.altKey && event.code === "KeyM") press("hp-heed");
    else if ((event.ctrlKey || event.metaKey) && event.key === "Enter") press("hp-run");
    else if (!(event.target.matches?.(".hp-answer") && walk(event.target, event.key))) return;
    event.preventDefault();
  }, true);

  return { say, mark, save, readFile, readLink, setLink, runIf };
})();
