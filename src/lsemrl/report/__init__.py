"""What was measured, as records, tables, plots and pages."""
