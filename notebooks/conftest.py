"""What nbval leaves out when it compares outputs: everything that is drawn, and the HTML twin of what is compared as text."""


def pytest_collectstart(collector):
    """Skip the representations that may differ between machines for the same content."""
    if collector.fspath and str(collector.fspath).endswith(".ipynb"):
        collector.skip_compare += ("text/html", "stderr", "application/vnd.vegalite.v5+json")
