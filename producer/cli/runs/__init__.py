"""Commands about runs: plan, launch, follow, control and report them."""
