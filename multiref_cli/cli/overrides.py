"""Shell completion of `group=option`, from the folders of conf/ alone."""


def complete_override(incomplete: str) -> list[str]:
    """Completions of one override: group names, then the options of a group.

    Args:
        incomplete: what is typed so far, `reg` or `regularizer=r`.

    Returns:
        Candidates that begin with it.
    """
    from multiref_cli.config.folders import groups, options

    group, equals, start = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in [*groups(), "alpha", "beta", "seed", "steps"] if name.startswith(group)]
    return [f"{group}={name}" for name in options(group) if name.startswith(start)]
