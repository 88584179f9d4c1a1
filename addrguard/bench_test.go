package addrguard_test

func bench(Call, *Answer) error { return nil }
