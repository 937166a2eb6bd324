"""Writes what lies in dashboards/: four Grafana dashboards, the rules of Prometheus, the table of alerts in the README.

    objectives   what is promised, and how fast its budget may burn; every number of the SLOs
    rule         what a rule is, and how it is written as YAML
    slo          recording rules and alerts that follow from the objectives
    alerts       the other alerts
    queries      PromQL of the panels
    panels       how panels look
    frame        what all dashboards have: variables, links, annotations
    service, kernel, gpu, experts   a dashboard each
    files        which text belongs to which file

The rules need no package but PyYAML and ours; the dashboards need grafana-foundation-sdk, which Grafana does not.
"""
