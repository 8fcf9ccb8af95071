// Without this script every table stays a plain table; with it, tables sort, search and filter.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();

function addFilters(table, api, DataTable) {
  const places = table.dataset.filters.split(",").filter(Boolean).map(Number);
  const bar = document.createElement("div");
  bar.className = "filters";
  for (const place of places) {
    const column = api.column(place);
    const label = document.createElement("label");
    label.append(column.header().textContent + " ");
    const select = document.createElement("select");
    const texts = new Set(column.nodes().toArray().map((cell) => cell.textContent));
    for (const text of ["", ...texts]) select.append(new Option(text || "all", text)); // text only, never markup
    select.addEventListener("change", () => {
      const pattern = select.value ? "^" + DataTable.util.escapeRegex(select.value) + "$" : "";
      column.search(pattern, true, false).draw();
    });
    label.append(select);
    bar.append(label);
  }
  if (places.length) table.closest(".wide").before(bar);
}

async function enliven() {
  const bytes = Uint8Array.from(atob(datatables), (letter) => letter.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
  const { default: DataTable } = await import(url);
  const start = (table) => {
    const long = table.rows.length > 61;
    const options = { paging: long, pageLength: 50, info: long, order: [], autoWidth: false };
    addFilters(table, new DataTable(table, options), DataTable);
  };
  for (const table of document.querySelectorAll("table.data")) {
    const fold = table.closest("details");
    if (fold) fold.addEventListener("toggle", () => start(table), { once: true });
    else start(table);
  }
}
enliven();
