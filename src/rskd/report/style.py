"""How the page looks: light, on screen and on paper."""

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1f2933;
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.5rem 3rem; }
h1 { font-size: 1.9rem; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-bottom: 2px solid #d5dbe1; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 0; }
p { margin: .5rem 0; max-width: 46rem; }
.state { border-left: 5px solid #b3261e; padding: .3rem .8rem; font-weight: 600; background: #fdf3f2; }
.note { color: #52606d; font-size: .88rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: .6rem; align-items: start; }
figure { margin: 0 0 .6rem; }
figcaption { font-size: .85rem; color: #3e4c59; }
.panels figcaption { text-align: center; font-weight: 600; }
img { max-width: 100%; }
code { overflow-wrap: anywhere; }
.panels img { width: 100%; display: block; image-rendering: auto; }
.legend span { display: inline-block; margin-right: 1.2rem; font-size: .88rem; }
.legend img { vertical-align: -3px; border: 1px solid #7b8794; }
.legend { max-width: none; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-size: .88rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e7eb; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #9aa5b1; vertical-align: bottom; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
footer { margin-top: 2.5rem; border-top: 2px solid #d5dbe1; font-size: .88rem; }
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .panels { grid-template-columns: repeat(5, 1fr); }
  .case, figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
