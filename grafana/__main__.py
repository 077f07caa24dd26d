"""Write the dashboards: `make dashboards`."""

from grafana import FOLDER, written

for name, text in written().items():
    (FOLDER / name).write_text(text, encoding="utf-8")
