"use strict";
// Sorting and filtering of tables, and folded sections that open where a link or a printer needs them.
// Without it the page shows the same content.

function number(text) {
  const plain = text.trim().replace(/[−–]/g, "-").replace(/^\D*?(?=[+-]?\.?\d)/, "");
  return parseFloat(plain);
}

function sort(table, column, head) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  const body = table.tBodies[0], rows = [...body.rows], numeric = head.classList.contains("number");
  const key = row => row.cells[column].textContent;
  rows.sort((a, b) => {
    if (!numeric) return (up ? 1 : -1) * key(a).localeCompare(key(b), undefined, {numeric: true});
    const x = number(key(a)), y = number(key(b));
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);  // what was not measured stays below
    return up ? x - y : y - x;
  });
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    head.tabIndex = 0;
    head.title = "sort";
    head.addEventListener("click", () => sort(table, column, head));
    head.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(table, column, head); }
    });
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows], bar = document.createElement("label");
  const input = document.createElement("input"), count = document.createElement("span");
  bar.className = "filter";
  input.type = "search";
  input.placeholder = "words in a row";
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  });
  count.textContent = `${rows.length} rows`;
  bar.append("filter ", input, count);
  table.closest("figure").prepend(bar);
}

function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView();
}

for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length > 1) sortable(table);
  if (table.tBodies[0].rows.length > 10) filterable(table);
}

const folded = [...document.querySelectorAll("details")], contents = document.querySelector("nav");
if (contents && folded.length) {
  for (const [name, open] of [["open all", true], ["fold all", false]]) {
    const button = document.createElement("button");
    button.textContent = name;
    button.addEventListener("click", () => { for (const one of folded) one.open = open; });
    contents.append(button);
  }
}

let opened = [];
addEventListener("beforeprint", () => { opened = folded.filter(one => !one.open); for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
addEventListener("hashchange", reveal);
reveal();
