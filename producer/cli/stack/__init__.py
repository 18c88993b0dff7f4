"""Commands about the stack, its metrics and alerts, the doctor and the demo."""
