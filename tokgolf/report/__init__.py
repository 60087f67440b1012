"""The report: what runs and sweeps found, as one HTML page that needs nothing beside itself."""
