"""The process that writes the watchdog's decisions into a Grafana, as annotations."""
