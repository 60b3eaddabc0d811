import PrepareData


def test_every_data_set_has_its_parts():
    assert tuple(PrepareData.PARTS) == PrepareData.DATASETS
