"use strict";
(() => {
  // Tables: a button in each head of a column sorts by it, and the other way round the second time.
  const valueOf = (cell) => {
    const given = cell.dataset.value;
    const text = given === undefined ? cell.textContent.trim() : given;
    const number = text === "" ? NaN : Number(text);
    return { text, number };
  };
  const compare = (a, b) => a.text.localeCompare(b.text, "en", { numeric: true });
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const rows = [...body.rows].map((row) => ({ row, ...valueOf(row.cells[column]) }));
        // Empty cells stay at the end whichever way the others go.
        const empty = rows.filter((entry) => entry.text === "" || entry.text === "–");
        const full = rows.filter((entry) => !empty.includes(entry));
        const numeric = full.length > 0 && full.every((entry) => Number.isFinite(entry.number));
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : numeric;
        const sign = down ? -1 : 1;
        full.sort((a, b) => sign * (numeric ? a.number - b.number : compare(a, b)));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        body.append(...full.map((entry) => entry.row), ...empty.map((entry) => entry.row));
      });
    });
  }

  // What cannot be scrolled need not be a stop of the Tab key.
  const scrollable = [...document.querySelectorAll(".frame, .scroller")];
  const mark = (element) => {
    if (element.scrollWidth > element.clientWidth + 1) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  };
  const watcher = new ResizeObserver((entries) => entries.forEach((entry) => mark(entry.target)));
  scrollable.forEach((element) => watcher.observe(element));

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        // Pages opened from a disk may have no clipboard: leave the text selected for Ctrl+C.
        const range = document.createRange();
        range.selectNodeContents(source);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected: press Ctrl+C";
        return;
      }
      button.textContent = "Copied";
    });
  }

  // On a small screen the table of contents starts closed; on paper all is open.
  const contents = document.querySelector(".contents details");
  if (contents && matchMedia("(max-width: 1000px)").matches) contents.open = false;
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((element) => { element.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((element) => { element.open = false; }));
})();
