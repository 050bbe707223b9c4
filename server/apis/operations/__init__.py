"""For orchestrators, dashboards, and who looks at the address."""
