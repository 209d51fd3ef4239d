"""From the files of one or many runs: a page to read, its figures and their tables. Never imports torch.

``html.write_report`` builds the page; ``figures.FIGURES`` names its figures; ``tables.read_study`` reads and
checks the files, which is all that any of them know of a run. What the page's scripts (``assets/``) draw comes from
``page_data.py``, ``evidence.py`` and ``responses.py``; ``assets.py`` puts both into the page.
"""
