// Every table has a link that downloads it as CSV, in the order in which it stands: measured values, unrounded.
for (const table of document.querySelectorAll("table")) {
  const link = document.createElement("a");
  const heads = [...table.tHead.rows].at(-1).cells;
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const plain = (node) => node.textContent.replaceAll("\u00a0", " ").trim();
  const spread = (cell) => (cell.querySelector("small") ? plain(cell.querySelector("small")) : "");
  const number = (cell) => cell.dataset.value ?? plain(cell).replace(/^\u2013$/, "");
  const rows = () => [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => row.cells.length > 1);
  const lines = () => {
    const spreads = [...heads].map((_, column) => column > 0 && rows().some((row) => spread(row.cells[column])));
    const line = (cells, value, more) =>
      [...cells].flatMap((cell, column) => [value(cell, column), ...(spreads[column] ? [more(cell)] : [])]);
    const body = rows().map((row) => line(row.cells, number, (cell) => spread(cell).replace(/^\u00b1 /, "")));
    return [line(heads, plain, (cell) => `${plain(cell)} spread`), ...body];
  };
  link.className = "csv";
  link.textContent = "Download CSV";
  link.setAttribute("aria-label", `Download CSV: ${plain(table.caption)}`);
  link.download = `${plain(table.caption).toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").slice(0, 60)}.csv`;
  const fill = () => {
    const text = lines().map((line) => line.map(quoted).join(",")).join("\n");
    link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(`${text}\n`)}`;
  };
  fill();
  link.addEventListener("click", fill);
  table.parentElement.after(link);
}
