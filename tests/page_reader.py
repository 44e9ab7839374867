"""A page of ours as a reader sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a reader sees: the cells of the first table, all text, and every address."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.bold, self.words, self.addresses, self.open, self.tables = [], [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tables += tag == "table"
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)
        if tag == "tr" and self.tables == 1:
            self.rows.append([])
            self.bold.append([])
        if tag in ("td", "th") and self.tables == 1:
            self.rows[-1].append("")
            self.bold[-1].append(False)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.tables == 1 and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.replace("\xa0", " ")
            self.bold[-1][-1] |= "strong" in self.open
