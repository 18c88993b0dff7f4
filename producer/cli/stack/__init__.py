"""Commands about what runs beside a run: the stack, its metrics and alerts, the doctor, the demo."""
