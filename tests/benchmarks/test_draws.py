from benchmarks import draws


def test_every_task_is_measured(monkeypatch, capsys):
    threads = []
    monkeypatch.setattr(draws.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(draws, "BATCHES", (3,))
    monkeypatch.setattr(draws, "REPEATS", 1)
    draws.main()
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["sequences per second", "batch 3"]
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 * 6 + 4 + 2 + 1
    assert all(int(line.split("|")[2].replace(",", "")) > 0 for line in rows)
    assert threads == [1]
