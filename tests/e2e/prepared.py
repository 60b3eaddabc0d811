"""What PrepareData.py leaves behind: files, and the numbers of its closing table."""


def images(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def row(output, dataset):
    """The closing table's numbers: classes, train, test, skipped."""
    return [
        int(word)
        for word in output.split(f"\n{dataset} ")[-1].split("\n")[0].replace(",", "").split()
    ]
