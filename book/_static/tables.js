/* A table of more than a dozen rows sorts by a click on a heading and shows the rows with a word. */
document.addEventListener("DOMContentLoaded", () => {
  const number = text => {
    const found = text.replaceAll("−", "-").replaceAll(",", "").replace(/^</, "")
      .match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?(?=$|[\s%(])/);
    return found ? Number(found[0]) : NaN;
  };

  // Numbers by size, then words by the alphabet; what was not run stays at the end.
  const compare = (a, b, sign) => {
    const empty = text => ["", "–", "-", "not run"].includes(text);
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    const [x, y] = [number(a), number(b)];
    if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y) || sign * a.localeCompare(b);
    return sign * (x - y || a.localeCompare(b, undefined, { numeric: true }));
  };

  for (const table of document.querySelectorAll(".bd-article table.dataframe")) {
    const body = table.tBodies[0], rows = [...(body ? body.rows : [])];
    const heads = [...table.querySelectorAll("thead th")];
    if (rows.length <= 12 || rows.some(row => row.cells.length !== heads.length)) continue;

    const box = document.createElement("p"), label = document.createElement("label");
    const field = document.createElement("input"), count = document.createElement("span");
    box.className = "table-tools";
    label.append("Rows with ", field);
    field.type = "search";
    count.setAttribute("role", "status");
    box.append(label, " ", count);
    table.before(box);

    const show = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
      const shown = rows.filter(row => !row.hidden).length;
      count.textContent = words.length ? `${shown} of ${rows.length} rows`
        : `${rows.length} rows; a heading sorts them`;
    };
    field.oninput = show;
    show();

    heads.forEach((head, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.onclick = () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const text = row => row.cells[k].textContent.trim();
        body.append(...[...rows].sort((a, b) => compare(text(a), text(b), sign)));
      };
    });
  }
});
