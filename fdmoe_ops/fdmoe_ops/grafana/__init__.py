"""A Grafana as this project uses it: dashboards are pushed to it, and failovers become annotations there.

Whatever imports grafana-client does so through `fdmoe_ops.grafana.extra`: it is in an extra of its own.
"""
