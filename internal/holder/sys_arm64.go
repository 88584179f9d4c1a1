package holder

// Numbers that package syscall does not have.
const (
	sysPidfdOpen      = 434
	sysPidfdGetfd     = 438
	sysProcessVMReadv = 270
	sysSetns          = 268
	sysUnshare        = 97
	sysCapset         = 91
	sysCloseRange     = 436
)
