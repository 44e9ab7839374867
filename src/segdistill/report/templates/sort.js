// A click on a column's head sorts its table, best first, then the other way round; rows stay in their group.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows].at(-1).cells;
  [...heads].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "descending" ? 1 : -1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = sign < 0 ? "descending" : "ascending";
      const value = (row) => Number(row.cells[column].dataset.value ?? NaN);
      const text = (row) => row.cells[column].textContent;
      const order = (a, b) => {
        const gap = value(a) - value(b);
        if (!Number.isNaN(gap)) return sign * gap;
        const missing = Number.isNaN(value(a)) - Number.isNaN(value(b));
        return missing || -sign * text(a).localeCompare(text(b));
      };
      for (const body of table.tBodies) {
        body.append(...[...body.rows].filter((row) => row.cells.length > 1).sort(order));
      }
    });
  });
}
