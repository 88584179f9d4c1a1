package holder

// Numbers that package syscall does not have.
const (
	sysPidfdOpen      = 434
	sysPidfdGetfd     = 438
	sysProcessVMReadv = 310
	sysSetns          = 308
	sysUnshare        = 272
	sysCapset         = 126
	sysCloseRange     = 436
)
