"""The dashboards, and the program that writes them: `make dashboards`."""
