"use strict";

// The figures: drawn in the colours of the page, and again when these change.
const figures = JSON.parse(document.getElementById("figures").textContent);

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--text").trim();
  const line = style.getPropertyValue("--line").trim();
  const narrow = window.innerWidth < 640;
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
    font: { color: text, size: narrow ? 11 : 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 10, t: 30, b: 45 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    hovermode: "closest",
    barmode: "group",
  };
}

const elementOf = (name) => document.getElementById(`figure-${name}`);

function draw(name) {
  const figure = figures[name];
  const options = { responsive: true, displaylogo: false, displayModeBar: "hover" };
  Plotly.react(elementOf(name), figure.data, themed(figure.layout), options);
}

// A figure is drawn when it comes near the screen, so that a large page opens at once.
const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target.id.replace("figure-", ""));
      }
    }
  },
  { rootMargin: "600px" }
);
for (const name of Object.keys(figures)) {
  near.observe(elementOf(name));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const name of Object.keys(figures)) {
    if (elementOf(name).classList.contains("js-plotly-plot")) {
      draw(name);
    }
  }
});
addEventListener("beforeprint", () => Object.keys(figures).forEach(draw));

// The table of classes: sorted, searched and filtered.
const table = document.getElementById("class-table");
const body = table.tBodies[0];
const rows = Array.from(body.rows);
const search = document.getElementById("class-search");
const groups = Array.from(document.querySelectorAll(".group"));

function filter() {
  const text = search.value.trim().toLowerCase();
  const shown = new Set(groups.filter((box) => box.checked).map((box) => box.value));
  let count = 0;
  for (const row of rows) {
    const fits = shown.has(row.dataset.group) && row.cells[0].textContent.toLowerCase().includes(text);
    row.hidden = !fits;
    count += fits;
  }
  document.getElementById("class-count").textContent = `${count} of ${rows.length} classes`;
}

function sortBy(column, descending) {
  const numeric = rows.some((row) => row.cells[column].classList.contains("n"));
  const value = (row) => {
    const text = row.cells[column].textContent;
    return numeric ? parseFloat(text) : text;
  };
  const sign = descending ? -1 : 1;
  rows.sort((one, other) => {
    const a = value(one), b = value(other);
    if (!numeric) {
      return sign * a.localeCompare(b);
    }
    // Cells without a value come last in both directions.
    return Number.isNaN(a) - Number.isNaN(b) || (Number.isNaN(a) ? 0 : sign * (a - b));
  });
  body.append(...rows);
  for (const [index, head] of Array.from(table.tHead.rows[0].cells).entries()) {
    head.setAttribute("aria-sort", index !== column ? "none" : descending ? "descending" : "ascending");
  }
}

for (const [column, head] of Array.from(table.tHead.rows[0].cells).entries()) {
  head.querySelector("button").addEventListener("click", () => {
    sortBy(column, head.getAttribute("aria-sort") === "ascending");
  });
}
search.addEventListener("input", filter);
groups.forEach((box) => box.addEventListener("change", filter));
filter();
