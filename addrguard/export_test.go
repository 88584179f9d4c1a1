package addrguard

// Before615 makes a guard do without what Linux 6.15 brought.
func Before615(opts Options) Options {
	opts.before615 = true
	return opts
}

// Before66 makes a guard do without programs on devices, too.
func Before66(opts Options) Options {
	opts.before66 = true
	return Before615(opts)
}

// IsBefore66 tells such a guard.
func IsBefore66(opts Options) bool { return opts.before66 }
