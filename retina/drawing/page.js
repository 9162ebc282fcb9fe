"use strict";
// Tables that sort and charts that show their values; the page can be read without either.
(() => {
  // The value to sort a cell by: its data-value, or else its text. A dash is no value.
  const sorted = (cell) => {
    const text = (cell.dataset.value ?? cell.textContent).trim();
    return text === "–" ? "" : text;
  };
  // `1,234`, `−0.05`, `< 0.001`, `12.3 %`, and of an interval its lower end; NaN for other text.
  const number = (text) => {
    const match = /^(?:< )?([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?=$|[\s%–])/.exec(text);
    return match ? Number(match[1].replace("−", "-").replaceAll(",", "")) : NaN;
  };
  // A column of numbers sorts descending first; cells without a value stay last either way. The first column holds names.
  const sort = (table, column, header) => {
    const rows = [...table.tBodies[0].rows].map((row) => [sorted(row.cells[column]), row]);
    const numeric = column > 0 && rows.every(([text]) => text === "" || !Number.isNaN(number(text)));
    const was = header.getAttribute("aria-sort");
    const direction = was ? (was === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const compare = numeric ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b, undefined, { numeric: true });
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (header.classList.contains("plot")) return; // its figures stand in the next column
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, column, header));
    });
  }

  // Under the pointer, or on the arrow keys, a chart shows the values of its curves at the nearest x.
  for (const svg of document.querySelectorAll("svg[data-curves]")) {
    const chart = JSON.parse(svg.dataset.curves);
    const places = [...new Set(chart.curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
    if (!places.length) continue;
    const figure = svg.closest("figure");
    const cross = svg.querySelector(".cross");
    let at = places.length - 1;
    let tooltip = null;
    const pixel = (x) => chart.left + ((chart.logX ? Math.log(x / chart.x[0]) / Math.log(chart.x[1] / chart.x[0]) : (x - chart.x[0]) / (chart.x[1] - chart.x[0])) || 0) * (chart.right - chart.left);
    const hide = () => { tooltip?.remove(); tooltip = null; cross.style.visibility = "hidden"; };
    const show = () => {
      const x = places[at];
      const lines = chart.curves.flatMap((curve) => {
        let nearest = -1;
        curve.x.forEach((place, index) => { if (place <= x && (nearest < 0 || place >= curve.x[nearest])) nearest = index; });
        return nearest < 0 ? [] : [`${curve.name}: ${Number(curve.y[nearest].toPrecision(4))}`];
      });
      if (!tooltip) { tooltip = document.createElement("div"); tooltip.className = "tooltip"; tooltip.setAttribute("role", "status"); figure.append(tooltip); }
      tooltip.replaceChildren(...[`${chart.label} ${Number(x.toPrecision(5)).toLocaleString("en")}`, ...lines].map((text) => {
        const line = document.createElement("div");
        line.textContent = text;
        return line;
      }));
      const share = pixel(x) / chart.width;
      tooltip.style.top = `${svg.getBoundingClientRect().top - figure.getBoundingClientRect().top}px`;
      tooltip.style.left = share < 0.5 ? `${100 * share + 2}%` : "";
      tooltip.style.right = share < 0.5 ? "" : `${100 - 100 * share + 2}%`;
      cross.setAttribute("x1", pixel(x));
      cross.setAttribute("x2", pixel(x));
      cross.style.visibility = "visible";
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const wanted = ((event.clientX - box.left) / box.width) * chart.width;
      at = places.reduce((best, x, index) => (Math.abs(pixel(x) - wanted) < Math.abs(pixel(places[best]) - wanted) ? index : best), 0);
      show();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("focus", show);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
      if (!step) { if (event.key === "Escape") hide(); return; }
      event.preventDefault();
      at = Math.min(places.length - 1, Math.max(0, at + step));
      show();
    });
  }
})();
