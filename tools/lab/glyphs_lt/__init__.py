"""The benchmark Glyphs-LT: its suites, its runs, and the page of results made of them."""
