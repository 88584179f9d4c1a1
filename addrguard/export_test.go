package addrguard

// Before615 makes a guard do without what Linux 6.15 brought.
func Before615(opts Options) Options {
	opts.before615 = true
	return opts
}
