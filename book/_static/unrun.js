/* A column in which nothing was run says so in one sentence below its table. */
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table.dataframe")) {
    const heads = [...table.querySelectorAll("thead tr:first-child > *")];
    const rows = [...table.tBodies].flatMap(body => [...body.rows]);
    const plain = [...table.rows].every(row => row.cells.length === heads.length);
    if (!plain || rows.length < 2) continue;
    const unrun = heads.map((_, k) => k)
      .filter(k => rows.every(row => row.cells[k].textContent.trim() === "not run"));
    if (!unrun.length) continue;
    for (const k of unrun) for (const row of table.rows) row.cells[k].hidden = true;
    const note = document.createElement("p");
    note.className = "provenance";
    note.textContent = `Not run: ${unrun.map(k => heads[k].textContent.trim()).join(", ")}.`;
    table.after(note);
  }
});
