"use strict";

document.addEventListener("click", (event) => {
  const sorting = event.target.closest("th button");
  const copying = event.target.closest("[data-copy]");
  if (sorting) sort(sorting.closest("th"));
  if (copying) copy(copying);
});

// best first, reversed by the next click; missing values stay last
function sort(head) {
  const table = head.closest("table");
  const way = head.getAttribute("aria-sort");
  const ascending = way ? way === "descending" : head.dataset.first !== "descending";
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = (row) => row.cells[head.dataset.column]?.dataset.value ?? "";
  const rows = [...table.tBodies[0].rows].sort((first, second) => {
    const [a, b] = [key(first), key(second)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = "number" in head.dataset ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return ascending ? order : -order;
  });
  table.tBodies[0].append(...rows);
  table.classList.add("sorted");
}

// through the selection: a page opened from a file may have no other access to the clipboard
function copy(button) {
  window.getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
  for (const other of document.querySelectorAll("[data-copy]")) other.textContent = "Copy";
  button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
}

// a plot is drawn when it comes near the viewport; plotly is run with the first plot
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) {
      near.unobserve(target);
      draw(target);
    }
  }
}, { rootMargin: "200px" });

function draw(plot, printed = false) {
  if (!window.Plotly) {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  }
  const narrow = !printed && plot.dataset.narrow && plot.clientWidth < 560;
  const { data, layout } = JSON.parse(narrow ? plot.dataset.narrow : plot.dataset.figure);
  if (printed) {
    layout.width = plot.clientWidth;
    for (const trace of data) delete trace.marker?.pattern; // printed as an image per bar, of megabytes
  }
  window.Plotly.react(plot, data, layout, { responsive: !printed, displayModeBar: false });
}

// on paper all figures are drawn, in light colours and as wide as the paper; afterwards as before
const folded = [];
window.addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printed");
  for (const details of document.querySelectorAll(".attack:not([open])")) {
    folded.push(details);
    details.open = true;
  }
  for (const details of document.querySelectorAll(".attack")) fill(details);
  for (const plot of document.querySelectorAll(".plot")) draw(plot, true);
});
window.addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printed");
  for (const plot of document.querySelectorAll(".plot")) draw(plot);
  for (const details of folded.splice(0)) details.open = false;
});

// the content of a folded section is parsed when the section is opened
function fill(details) {
  const folded = details.querySelector(":scope > script");
  if (!details.open || !folded) return;
  folded.outerHTML = folded.textContent;
  for (const plot of details.querySelectorAll(".plot")) near.observe(plot);
}
for (const details of document.querySelectorAll(".attack")) {
  details.addEventListener("toggle", () => fill(details));
  fill(details);
}
for (const plot of document.querySelectorAll("#scatter .plot")) near.observe(plot);
