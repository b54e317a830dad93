// the table for a paper, as paper_table.py assembles it, for the columns and attacks that are ticked
const paper = document.getElementById("paper");

function assemble() {
  const table = JSON.parse(paper.dataset.table);
  const ticked = (name) => new Set([...paper.querySelectorAll(`[name=${name}]:checked`)].map((box) => box.value));
  const [columns, attacks] = [ticked("column"), ticked("attack")];
  const percent = paper.querySelector("[name=percent]").checked ? 1 : 0;
  const shown = table.columns.filter((column) => columns.has(column.name));
  const lines = table.lines.filter((line) => attacks.has(line.attack));
  document.getElementById("latex").textContent = latex(table, shown, lines, percent);
  document.getElementById("markdown").textContent = markdown(table, shown, lines, percent);
}

function latex(table, columns, lines, percent) {
  const first = table.names.length;
  const titles = Array(first).fill("");
  const rules = [];
  for (let start = 0, end; start < columns.length; start = end) {
    const { part } = columns[start];
    for (end = start; end < columns.length && columns[end].part === part; ) end += 1;
    titles.push(`\\multicolumn{${end - start}}{c}{${table.parts[part]}}`);
    rules.push(`\\cmidrule(lr){${first + start + 1}-${first + end}}`);
  }
  const body = [];
  let before = null;
  for (const line of lines) {
    const group = JSON.stringify(line.group);
    if (before !== null && group !== before) body.push("\\midrule");
    const names = line.latex.names.map((name, i) => (group === before && i < first - 1 ? "" : name));
    const numbers = line.failed && columns.length
      ? [`\\multicolumn{${columns.length}}{l}{failed}`]
      : columns.map((column) => line.latex.numbers[column.name][percent]);
    body.push(`${[...names, ...numbers].join(" & ")} \\\\`);
    before = group;
  }
  return [
    table.needs,
    "\\begin{table}",
    "\\centering",
    columns.length > table.wide ? "\\scriptsize\\setlength{\\tabcolsep}{3pt}" : "\\small",
    `\\caption{${table.captions.latex[percent]}}`,
    `\\label{${table.label}}`,
    `\\begin{tabular}{${"l".repeat(first)}${"r".repeat(columns.length)}}`,
    "\\toprule",
    ...(rules.length ? [`${titles.join(" & ")} \\\\`, rules.join(" ")] : []),
    `${[...table.names, ...columns.map((column) => column.latex)].join(" & ")} \\\\`,
    "\\midrule",
    ...body,
    "\\bottomrule",
    "\\end{tabular}",
    "\\end{table}",
  ].join("\n");
}

function markdown(table, columns, lines, percent) {
  const rows = lines.map(({ failed, markdown: { names, numbers } }) => [
    ...names,
    ...columns.map(({ name }, i) => (failed ? (i ? "" : "failed") : numbers[name][percent])),
  ]);
  rows.unshift([...table.names.map(() => "---"), ...columns.map(() => "---:")]);
  rows.unshift([...table.names, ...columns.map((column) => column.markdown)]);
  return [table.captions.markdown[percent], "", ...rows.map((cells) => `| ${cells.join(" | ")} |`)].join("\n");
}

if (paper) paper.addEventListener("change", assemble);
